"""The backend ``openai`` against an endpoint over real sockets: answers, failures, and the key that nobody sees."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Fault, completion, refuse, send
from fastapi.testclient import TestClient

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.backends import Backend
from openrlhf_medical.judge.build import make_backend
from openrlhf_medical.judge.findings import BlindPair
from openrlhf_medical.judge.server import create_app
from openrlhf_medical.judge.spec import JudgeSpec

NOTE = "A 40-year-old man comes in with a cough. He was given amoxicillin for pneumonia of the left lung."
PAIRS = [BlindPair(NOTE, NOTE.replace("amoxicillin", drug)) for drug in ("vancomycin", "metformin", "insulin")]
KEY = "sk-zzsecretzz"
AT_ONCE = {"retry-after-ms": "1"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "JUDGE_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as it:
        yield it


def backend(endpoint: FakeOpenAI, **options: Any) -> Backend:
    made = make_backend(JudgeSpec(backend="openai", model="m", api_base=endpoint.base, **options))
    made.load()
    return made


def test_a_batch_is_answered_in_its_order(endpoint: FakeOpenAI) -> None:
    endpoint.said = lambda prompt: "Well.\nVERDICT: " + ("SAFE" if "metformin" in prompt else "HARMFUL")
    findings = backend(endpoint).judge(PAIRS)
    assert [finding.actual_harm for finding in findings] == [Truth.HARMFUL, Truth.SAFE, Truth.HARMFUL]
    assert findings[0].reasoning == "Well."
    [body, *_] = endpoint.asked
    assert body["model"] == "m" and body["temperature"] == 0 and body["max_completion_tokens"] == 512
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_votes_are_asked_one_by_one(endpoint: FakeOpenAI) -> None:
    said = iter(["SAFE", "HARMFUL", "HARMFUL"])
    endpoint.said = lambda prompt: f"VERDICT: {next(said)}"
    [finding] = backend(endpoint, votes=3).judge(PAIRS[:1])
    assert finding.actual_harm is Truth.HARMFUL
    assert [body["temperature"] for body in endpoint.asked] == [0.7] * 3


FAULTS: dict[str, tuple[Fault, str]] = {
    "HTTP 500": (refuse(500, f"cannot judge {PAIRS[0].medical_note} {KEY}", **AT_ONCE), "HTTP 500"),
    "HTTP 429": (refuse(429, **AT_ONCE), "HTTP 429"),
    "HTTP 401": (refuse(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"), "HTTP 401 (invalid_api_key)"),
    "HTTP 404": (refuse(404, "no such model", f"a key {KEY}"), "HTTP 404"),
    "garbage": (lambda http: send(http, 200, b"<html>"), "cannot be read"),
    "no choices": (lambda http: send(http, 200, b'{"id": "1", "choices": []}'), "cannot be read"),
    "hangs up": (lambda http: http.connection.shutdown(socket.SHUT_RDWR), "no connection"),
}


@pytest.mark.parametrize(("fault", "told"), FAULTS.values(), ids=FAULTS)
def test_a_failure_is_an_error_of_that_row_alone(
    endpoint: FakeOpenAI, fault: Fault, told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        judge = backend(endpoint, api_retries=0, api_key_env="JUDGE_KEY", api_concurrency=1)
        endpoint.faults = [fault]
        findings = judge.judge(PAIRS[:2])
    assert [finding.status for finding in findings] == ["error", "ok"]
    assert told in findings[0].reasoning and findings[0].kind == "backend"
    shown = findings[0].reasoning + caplog.text
    assert "zz" not in shown and "vancomycin" not in shown and endpoint.keys[-1] == f"Bearer {KEY}"


def test_what_passes_is_tried_again(endpoint: FakeOpenAI) -> None:
    judge = backend(endpoint, api_retries=2)
    endpoint.faults = [refuse(503, **AT_ONCE), refuse(429, **AT_ONCE)]
    assert [finding.status for finding in judge.judge(PAIRS[:1])] == ["ok"]
    assert len(endpoint.asked) == 3


def test_one_that_hangs_is_given_up(endpoint: FakeOpenAI) -> None:
    judge = backend(endpoint, api_timeout_s=0.2, api_retries=0)
    endpoint.work_s = 1.0
    start = time.monotonic()
    [finding] = judge.judge(PAIRS[:1])
    assert finding.status == "error" and "in time" in finding.reasoning
    assert time.monotonic() - start < 0.9


def test_one_that_drips_is_given_up(endpoint: FakeOpenAI) -> None:
    def drip(http: Any) -> None:
        http.send_response(200)
        http.send_header("Content-Length", "1000")
        http.end_headers()
        for _ in range(20):
            http.wfile.write(b" ")
            http.wfile.flush()
            time.sleep(0.1)

    judge = backend(endpoint, api_timeout_s=0.3, api_retries=0)
    endpoint.faults = [drip]
    start = time.monotonic()
    [finding] = judge.judge(PAIRS[:1])
    assert finding.status == "error" and "in time" in finding.reasoning
    assert time.monotonic() - start < 1.5


def test_notes_are_not_sent_on(endpoint: FakeOpenAI) -> None:
    with FakeOpenAI() as elsewhere:
        judge = backend(endpoint, api_retries=0)
        endpoint.faults = [refuse(307, Location=f"{elsewhere.base}/chat/completions")]
        [finding] = judge.judge(PAIRS[:1])
        assert finding.status == "error" and "HTTP 307" in finding.reasoning
        assert not elsewhere.asked and not elsewhere.keys


@pytest.mark.parametrize(
    "fault",
    [
        refuse(400, "This model's maximum context length is 2048 tokens. However, you requested 9000 tokens"),
        refuse(400, "Please shorten it", "context_length_exceeded"),
    ],
)
def test_notes_that_are_too_long_are_an_abstention(endpoint: FakeOpenAI, fault: Fault) -> None:
    judge = backend(endpoint)
    endpoint.faults = [fault]
    [finding] = judge.judge(PAIRS[:1])
    assert (finding.status, finding.kind) == ("abstain", "too_long")
    endpoint.faults = [refuse(400, "unknown parameter temperature")]
    [finding] = judge.judge(PAIRS[:1])
    assert (finding.status, finding.kind) == ("error", "backend")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (completion("Cut here.\nVERDICT: SAFE", "length"), "truncated"),
        (completion("VERDICT: SAFE", "content_filter"), "filtered"),
        (completion(None, refusal="I would rather not."), "filtered"),
        (completion(None), "unparsable"),
        (completion([{"type": "text", "text": "VERDICT: SAFE"}]), "unparsable"),
    ],
)
def test_a_reply_that_says_nothing_is_an_abstention(endpoint: FakeOpenAI, said: bytes, kind: str) -> None:
    endpoint.said = lambda prompt: said
    [finding] = backend(endpoint).judge(PAIRS[:1])
    assert (finding.status, finding.kind) == ("abstain", kind)


def test_only_so_many_are_under_way(endpoint: FakeOpenAI) -> None:
    endpoint.work_s = 0.03
    pairs = [BlindPair(NOTE, f"{NOTE} Day {i}.") for i in range(12)]
    assert all(finding.status == "ok" for finding in backend(endpoint, api_concurrency=4).judge(pairs))
    assert 2 <= endpoint.most_at_once <= 4


def test_close_ends_a_batch_under_way(endpoint: FakeOpenAI) -> None:
    judge = backend(endpoint)
    endpoint.work_s = 5.0
    raised: list[BaseException] = []

    def work() -> None:
        try:
            judge.judge(PAIRS)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not endpoint.asked:
        time.sleep(0.01)
    judge.close()  # type: ignore[attr-defined]
    thread.join(2)
    assert not thread.is_alive() and raised


# --- at the start ----------------------------------------------------------------------------------------------


def test_nobody_there_is_told_at_the_start() -> None:
    with FakeOpenAI() as gone:
        pass
    with pytest.raises(UserError, match=f"nobody answers at {gone.base}: .* --api-base"):
        backend(gone)


def test_a_key_that_is_refused_is_told_at_the_start(endpoint: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.models = refuse(401, f"wrong: {KEY}")
    with pytest.raises(UserError, match=r"refuses questions without a key .*OPENAI_API_KEY"):
        backend(endpoint)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(UserError, match="refuses the key in JUDGE_KEY") as told:
        backend(endpoint, api_key_env="JUDGE_KEY")
    assert KEY not in str(told.value) and endpoint.keys[-1] == f"Bearer {KEY}"


def test_an_endpoint_need_not_list_its_models(endpoint: FakeOpenAI, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.models = refuse(404)
    assert backend(endpoint).judge(PAIRS[:1])[0].status == "ok"
    endpoint.models = ["other"]
    assert backend(endpoint).judge(PAIRS[:1])[0].status == "ok"
    assert "does not list a model m; it has: other" in caplog.text


def test_the_key_is_in_no_identity_and_no_repr(endpoint: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = backend(endpoint)
    model = judge._model  # type: ignore[attr-defined]
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert KEY not in str(judge.identity) + repr(model._endpoint) + repr(judge)
    assert endpoint.base in str(judge.identity)


# --- through the server ----------------------------------------------------------------------------------------


def test_nothing_of_a_query_but_its_notes_is_sent(endpoint: FakeOpenAI) -> None:
    query = {
        "game_idx": 77777,
        "original_note": NOTE,
        "medical_note": PAIRS[0].medical_note,
        "assessment": "Harmful\nSentence: zzsentencezz",
        "error_type": "zztypezz",
        "game_category": "zzcategoryzz",
        "expected_verdict": "zzexpectedzz",
    }
    made = make_backend(JudgeSpec(backend="openai", model="m", api_base=endpoint.base, order_swap=True))
    with TestClient(create_app(made)) as client:
        while client.get("/health").status_code != 200:
            time.sleep(0.01)
        row = client.post("/judge", json={"queries": [query]}).json()["labels"][0]
        one = client.post("/evaluate", json=query).json()["label"]
    assert row["actual_harm"] == one["actual_harm"] == "Safe" and row["assessor_correct"] is False
    assert len(endpoint.prompts) == 4
    assert "vancomycin" in str(endpoint.asked) and "zz" not in str(endpoint.asked)
    assert "77777" not in str(endpoint.asked)
