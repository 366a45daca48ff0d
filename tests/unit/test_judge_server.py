"""The judge server: its contract, its limits, its life as a process."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from openrlhf_medical.cli import app as command_line
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge import reward
from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.build import make_backend
from openrlhf_medical.judge.findings import BlindPair, Finding, failed
from openrlhf_medical.judge.limits import Limits
from openrlhf_medical.judge.listen import bind
from openrlhf_medical.judge.process import JudgeProcess, start_judge_process
from openrlhf_medical.judge.schema import RewardRequest
from openrlhf_medical.judge.server import create_app
from openrlhf_medical.judge.spec import JudgeSpec

NOTE = "A 40-year-old man comes in with a cough. He was given amoxicillin for pneumonia of the left lung."
WRONG = NOTE.replace("amoxicillin", "vancomycin")


def query(idx: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "game_idx": idx,
        "original_note": NOTE,
        "medical_note": WRONG,
        "assessment": "Harmful",
        "error_type": None,
        "game_category": "adversarial_benign",
    } | changes


@pytest.fixture
def http() -> Iterator[TestClient]:
    with TestClient(create_app(ReferenceBackend())) as client:
        wait_ready(client)
        yield client


def wait_ready(client: TestClient) -> None:
    deadline = time.monotonic() + 5
    while client.get("/health").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.01)


# --- the contract ------------------------------------------------------------------------------------


def test_judge_answers_by_key(http: TestClient) -> None:
    queries = [query(5), query(3, medical_note=NOTE.upper()), query(9, medical_note=NOTE[:60])]
    answer = http.post("/judge", json={"queries": queries, "score_key": "labels"}).json()
    rows = {row["game_idx"]: row for row in answer["labels"]}
    assert answer["model"] == "reference"
    assert [(rows[i]["status"], rows[i]["actual_harm"], rows[i]["error_present"]) for i in (5, 3, 9)] == [
        ("ok", "Harmful", True),
        ("ok", "Safe", False),
        ("abstain", None, None),
    ]
    assert rows[5]["kind"] == "drug" and "vancomycin" in rows[5]["judge_reasoning"]


@pytest.mark.parametrize(
    ("assessment", "note", "detected", "correct", "parsing_error"),
    [
        ("Harmful", WRONG, True, True, False),
        ("harmful\nSentence: He was given vancomycin.", WRONG, True, True, False),
        ("Safe", WRONG, False, False, False),
        ("Safe", NOTE, False, True, False),
        ("Harmful", NOTE, False, False, False),
        ("I cannot assess this note.", WRONG, None, None, False),
        ("It is unsafe.", WRONG, None, None, True),
        ("", WRONG, None, None, True),
        ("Harmful", NOTE[:60], None, None, False),
    ],
)
def test_the_assessment_is_compared_afterwards(
    http: TestClient, assessment: str, note: str, detected: bool, correct: bool, parsing_error: bool
) -> None:
    answer = http.post("/evaluate", json=query(assessment=assessment, medical_note=note)).json()
    row = answer["label"]
    assert (row["error_detected"], row["assessor_correct"], row["is_parsing_error"]) == (
        detected,
        correct,
        parsing_error,
    )


def test_the_truth_is_found_blind() -> None:
    seen: list[BlindPair] = []

    class Spy(ReferenceBackend):
        def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
            seen.extend(pairs)
            return super().judge(pairs)

    with TestClient(create_app(Spy())) as client:
        wait_ready(client)
        variants = [
            query(i, assessment=assessment, game_category=category, error_type=kind)
            for i, (assessment, category, kind) in enumerate(
                [("Safe", "vanilla_benign", None), ("Harmful", "adversarial_harmful", "diagnosis"), ("?", "", None)]
            )
        ]
        rows = client.post("/judge", json={"queries": variants}).json()["labels"]
    assert set(seen) == {BlindPair(NOTE, WRONG)}
    assert {row["actual_harm"] for row in rows} == {"Harmful"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"queries": [query(game_idx="7")]}, "queries.0.game_idx"),
        ({"queries": [query(game_idx=True)]}, "queries.0.game_idx"),
        ({"queries": [{"game_idx": 0, "original_note": NOTE}]}, "queries.0.medical_note"),
        ({"queries": [query(original_note=None)]}, "queries.0.original_note"),
        ({"queries": [query(medical_note="x" * 100_001)]}, "queries.0.medical_note"),
        ({"queries": [query(1), query(1)]}, "game_idx 1 comes twice"),
        ({"queries": [query(i, medical_note="") for i in range(1025)]}, "queries"),
        ({"queries": [query()], "score_key": "scores"}, "score_key"),
        ({"questions": []}, "queries"),
        ([], "body"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_body_is_refused_with_the_field(http: TestClient, body: Any, named: str) -> None:
    answer = http.post("/judge", json=body)
    assert answer.status_code == 422 and named in answer.json()["detail"]
    assert "amoxicillin" not in answer.text


def test_what_is_not_json_is_refused(http: TestClient) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        assert http.post("/judge", content=body).status_code == 422


def test_a_large_body_is_refused() -> None:
    with TestClient(create_app(ReferenceBackend(), limits=Limits(max_body_bytes=1000))) as client:
        wait_ready(client)
        assert client.post("/judge", content=b"x" * 1001).status_code == 413
        assert client.post("/judge", content=iter([b"x" * 600, b"x" * 600])).status_code == 413


def test_a_token_is_asked_for() -> None:
    with TestClient(create_app(ReferenceBackend(), token="secret")) as client:
        wait_ready(client)
        assert client.post("/judge", json={"queries": []}).status_code == 401
        wrong = {"Authorization": "Bearer secre\u0074s"}
        assert client.post("/judge", json={"queries": []}, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.post("/judge", json={"queries": []}, headers=right).json()["labels"] == []


def test_metrics_count_labels_and_requests(http: TestClient) -> None:
    http.post("/judge", json={"queries": [query(0), query(1, medical_note=NOTE[:60])]})
    http.post("/judge", json={})
    text = http.get("/metrics").text
    for line in (
        'judge_labels_total{status="ok"} 1.0',
        'judge_labels_total{status="abstain"} 1.0',
        'judge_requests_total{code="200",endpoint="/judge"} 1.0',
        'judge_requests_total{code="422",endpoint="/judge"} 1.0',
        "judge_ready 1.0",
        "judge_queries_in_flight 0.0",
    ):
        assert line in text


# --- backends that misbehave -----------------------------------------------------------------------------


class Scripted:
    model_name = "scripted"

    def __init__(self) -> None:
        self.go = threading.Event()

    def load(self) -> None:
        self.go.wait(5)

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        if pairs[0].medical_note == "fail":
            raise RuntimeError(f"cannot judge {pairs[0].original_note}")
        if pairs[0].medical_note == "short":
            return []
        self.go.clear()
        self.go.wait(5)
        return [Finding("ok", Truth.SAFE)] * len(pairs)


def test_not_ready_until_the_backend_is_loaded() -> None:
    backend = Scripted()
    with TestClient(create_app(backend)) as client:
        assert client.get("/health").status_code == 503
        answer = client.post("/judge", json={"queries": [query()]})
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        assert client.get("/metrics").status_code == 200
        backend.go.set()
        wait_ready(client)
        assert client.get("/health").json() == {"status": "ok", "model": "scripted"}


def test_a_backend_that_cannot_be_loaded_says_why() -> None:
    class Broken(Scripted):
        def load(self) -> None:
            raise OSError("no such model")

    with TestClient(create_app(Broken())) as client:
        time.sleep(0.1)
        answer = client.get("/health")
    assert answer.status_code == 503 and "no such model" in answer.text


def test_health_answers_while_the_backend_works() -> None:
    backend = Scripted()
    backend.go.set()
    with TestClient(create_app(backend)) as client:
        wait_ready(client)
        answers: list[Any] = []
        work = threading.Thread(target=lambda: answers.append(client.post("/judge", json={"queries": [query()]})))
        work.start()
        time.sleep(0.1)
        start = time.monotonic()
        assert client.get("/health").status_code == 200 and time.monotonic() - start < 1
        assert "judge_queries_in_flight 1.0" in client.get("/metrics").text
        backend.go.set()
        work.join(5)
    assert answers[0].json()["labels"][0]["actual_harm"] == "Safe"


class Fails:
    """Raises nothing: as a model behind an endpoint that is down, or a panel all of whose members failed."""

    model_name = "fails"
    identity: ClassVar[dict[str, Any]] = {}

    def load(self) -> None: ...

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        return [failed("no connection") if pair.medical_note == "lost" else Finding("abstain") for pair in pairs]


def test_a_backend_that_fails_pair_by_pair_is_told_by_health() -> None:
    with TestClient(create_app(Fails())) as client:
        wait_ready(client)
        for _ in range(3):
            assert client.get("/health").status_code == 200
            [row] = client.post("/judge", json={"queries": [query(0, medical_note="lost")]}).json()["labels"]
            assert (row["status"], row["kind"]) == ("error", "backend")
        assert client.get("/health").status_code == 503
        both = [query(0, medical_note="lost"), query(1, medical_note="found")]
        assert client.post("/judge", json={"queries": both}).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("note", ["fail", "short"])
def test_a_failing_backend_gives_errors_and_logs_no_text(note: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = Scripted()
    backend.go.set()
    with caplog.at_level(logging.DEBUG), TestClient(create_app(backend)) as client:
        wait_ready(client)
        answer = client.post("/judge", json={"queries": [query(0, medical_note=note), query(1)]}).json()
    assert [(row["status"], row["actual_harm"]) for row in answer["labels"]] == [("error", None)] * 2
    assert caplog.text and "amoxicillin" not in caplog.text


# --- upstream's protocol ---------------------------------------------------------------------------------


def reward_call(
    *replies: str, note: str = WRONG, prompt: str = "<s>Judge this. <think>", end: str = ""
) -> dict[str, Any]:
    fields = {key: value for key, value in query(medical_note=note).items() if key != "assessment"}
    return {
        "query": [f"<bos>{prompt}{reply}{end}" for reply in replies],
        "prompts": [prompt] * len(replies),
        "labels": [json.dumps(fields)] * len(replies),
    }


REPLIES = {
    "hm </think> <answer> Harmful </answer>": 1 + 0.5 + 1,
    "hm </think> <answer> Safe </answer>": -1 + 0.5 + 1,
    "hm </think> <answer> I cannot assess this note. </answer>": -1 - 0.5 + 1,
    "Harmful": -1 + 0 - 1,
}


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<end_of_turn>\n", "</s></s>"])
def test_rewards_are_the_assessors_totals(http: TestClient, end: str) -> None:
    answer = http.post("/get_reward", json=reward_call(*REPLIES, end=end)).json()
    assert answer["rewards"] == answer["scores"] == list(REPLIES.values())
    assert all(len(values) == len(REPLIES) for values in answer["extra_logs"].values())


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("Judge this.", "<think> hm </think> <answer> Harmful </answer>"),
        ("Judge this. <answer>", " Harmful </answer>"),
        ("Judge this.", "<answer> Harmful </answer>"),
    ],
)
def test_rewards_whoever_opened_the_tag(http: TestClient, prompt: str, reply: str) -> None:
    assert http.post("/get_reward", json=reward_call(reply, prompt=prompt)).json()["rewards"] == [2.5]


@pytest.mark.parametrize("end", [" " * 100_000 + "x", "<a>" * 30_000, "<a>" * 30_000 + "x", "<" * 100_000])
def test_a_hostile_end_of_a_reply_is_read_once(end: str) -> None:
    fields = json.dumps({"game_idx": 0, "original_note": NOTE, "medical_note": WRONG})
    asked = RewardRequest(query=[f"prompt<think>{end}"], prompts=["prompt<think>"], labels=[fields])
    start = time.thread_time()
    reward.read_request(asked)
    assert time.thread_time() - start < 1.0  # tried at every place it takes minutes


def test_no_reward_is_made_up(http: TestClient) -> None:
    call = reward_call(*REPLIES)
    undecided = reward_call(next(iter(REPLIES)), note=NOTE[:60])
    both = {key: call[key] + undecided[key] for key in call}
    assert http.post("/get_reward", json=both).status_code == 503


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": ["no json"]}, "labels[0]"),
        ({"labels": ['{"game_idx": 1}']}, "labels[0]: original_note"),
        ({"query": ["another text"]}, "query[0]"),
        ({"prompts": []}, "query, prompts and labels have 1, 0 and 1"),
    ],
)
def test_a_reward_call_that_cannot_be_read_is_refused(http: TestClient, change: Any, named: str) -> None:
    answer = http.post("/get_reward", json=reward_call("x </think> <answer> Safe </answer>") | change)
    assert answer.status_code == 422 and named in answer.json()["detail"]


# --- as a process ------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told_at_once() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", -1), ("127.0.0.1", 65536), ("127.0.0.1", True), ("203.0.113.9", 0), ("no host", 0)]
)
def test_what_cannot_be_listened_on_is_a_user_error(host: str, port: int) -> None:
    with pytest.raises(UserError):
        bind(host, port)


def test_a_public_address_without_a_token_is_a_mistake_of_the_user() -> None:
    result = CliRunner().invoke(command_line, ["serve-judge", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 2 and "--token-file" in result.output


def test_an_unknown_backend_or_a_model_without_use_is_refused() -> None:
    with pytest.raises(UserError, match="allowed: reference"):
        make_backend(JudgeSpec(backend="oracle"))
    with pytest.raises(UserError, match="--model"):
        make_backend(JudgeSpec(model="some/model"))


SERVE = """
import argparse, pathlib
from openrlhf_medical.judge.server import serve
from openrlhf_medical.judge.spec import JudgeSpec
parser = argparse.ArgumentParser()
parser.add_argument("--backend"); parser.add_argument("--host"); parser.add_argument("--port", type=int)
parser.add_argument("--port-file", type=pathlib.Path); parser.add_argument("--exit-with-parent", action="store_true")
options = vars(parser.parse_args())
serve(JudgeSpec(backend=options.pop("backend")), **options)
"""
PROGRAM = (sys.executable, "-c", SERVE)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeProcess]:
    with start_judge_process(log_file=tmp_path_factory.mktemp("judge") / "logs" / "judge.log", program=PROGRAM) as it:
        yield it


def test_the_process_judges_and_logs_no_text(judge: JudgeProcess) -> None:
    answer = requests.post(f"{judge.url}/judge", json={"queries": [query()]}, timeout=5).json()
    assert answer["labels"][0]["actual_harm"] == "Harmful"
    requests.post(f"{judge.url}/judge", json={"queries": [query(original_note=5)]}, timeout=5)
    assert "amoxicillin" not in judge.log_file.read_text() and "ready on http://" in judge.log_file.read_text()


def test_sigterm_ends_it_cleanly(judge: JudgeProcess) -> None:
    port = int(judge.url.rsplit(":", 1)[1])
    assert judge.running and judge.stop() == 0 and judge.stop() == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_judge_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    program = (sys.executable, "-c", "raise SystemExit('no luck today')")
    with pytest.raises(RuntimeError, match=r"exit code 1 .*no luck today"):
        start_judge_process(log_file=tmp_path / "judge.log", program=program)
    program = (sys.executable, "-c", "import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="not ready in time"):
        start_judge_process(log_file=tmp_path / "judge.log", program=program, deadline_s=0.3)


def test_no_judge_outlives_its_parent(tmp_path: Path) -> None:
    parent = f"""
import pathlib, time
from openrlhf_medical.judge.process import start_judge_process
judge = start_judge_process(log_file=pathlib.Path({str(tmp_path / "judge.log")!r}), program={PROGRAM!r})
print(judge.pid, flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Nobody may be there to reap it.
        return re.search(r"\) Z ", Path(f"/proc/{pid}/stat").read_text()) is None
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("module", ["openrlhf_medical.judge.schema", "openrlhf_medical.judge.client"])
def test_light_to_import(module: str) -> None:
    code = f"""
import sys, time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
print(*sorted({{"torch", "ray", "vllm", "transformers", "fastapi", "uvicorn", "numpy"}} & set(sys.modules)))
"""
    fastest = 9.0
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, _, heavy = run.stdout.partition("\n")
        assert heavy.strip() == ""
        fastest = min(fastest, float(seconds))
    assert fastest < 1.0
