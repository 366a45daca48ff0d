"""The judge client over real sockets, against servers that do all that servers do wrong."""

from __future__ import annotations

import asyncio
import json
import operator
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from faulty_judge import FAULTS, Fault, FaultyJudge, dripping, good, half_a_body, hang_up, rows_changed, slow, status

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Query, Truth
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.transport import retry_after


def first(count: int, bad: Fault, then: Fault = good) -> Fault:
    """``bad`` for the first requests."""

    def handle(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        (bad if judge.asked <= count else then)(judge, http, body)

    return handle


@contextmanager
def serving(*handlers: Fault) -> Iterator[list[FaultyJudge]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FaultyJudge(handler)) for handler in handlers]


def client_of(urls: Iterable[str], **options: Any) -> JudgeClient:
    """Of short patience, so that tests are."""
    return JudgeClient(list(urls), **{"max_wait_s": 0.01, "timeout_s": 10.0} | options)


def query(idx: int, note: str = "a note") -> Query:
    return Query(idx, "a note", note, "Safe", None, "adversarial_benign")


def ask(client: JudgeClient, *queries: Query) -> list[Label]:
    async def all_of_them() -> list[Label]:
        return await asyncio.gather(*(client.label(each) for each in queries))

    return asyncio.run(all_of_them())


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# --- what goes well ------------------------------------------------------------------------------


def test_rows_are_joined_by_key_and_batched() -> None:
    with serving(good) as (server,), client_of([server.url], batch_size=64, max_wait_s=0.5) as client:
        labels = ask(client, *(query(i, "a wrong note" if i % 3 == 0 else "a note") for i in range(200)))
    assert [label.actual_harm is Truth.HARMFUL for label in labels] == [i % 3 == 0 for i in range(200)]
    assert [label.extra["game_idx"] for label in labels] == list(range(200))
    sizes = [len(body["queries"]) for body in server.bodies]
    assert sum(sizes) == 200 and max(sizes) <= 64
    assert len(sizes) < 20, "four requests, or a few more where the machine was too busy to fill them in time"
    counts = client.snapshot()
    assert (counts["ok"], counts["error"], counts["retries"], counts["requests"]) == (200, 0, 0, len(sizes))
    assert 0 < counts["latency_s"] < 5 and 0 < counts["latency_p95_s"] < 5


def test_a_game_idx_may_come_twice() -> None:
    with serving(good) as (server,), client_of([server.url]) as client:
        labels = ask(client, query(7, "a wrong note"), query(7, "a note"), query(7, "a wrong note"))
    assert [label.actual_harm for label in labels] == [Truth.HARMFUL, Truth.SAFE, Truth.HARMFUL]
    assert [label.extra["game_idx"] for label in labels] == [7, 7, 7]


def test_a_lone_query_waits_no_longer_than_it_has_to() -> None:
    with serving(good) as (server,), client_of([server.url], max_wait_s=0.05) as client:
        start = time.monotonic()
        ask(client, query(0))
        assert time.monotonic() - start < 5


def test_abstain_and_error_rows_are_labels_without_truth() -> None:
    def some(rows: list[dict[str, Any]]) -> list[Any]:
        null = {"actual_harm": None, "error_present": None, "judge_reasoning": "why"}
        return [rows[0] | null | {"status": "abstain"}, rows[1] | null | {"status": "error"}]

    with serving(rows_changed(some)) as (server,), client_of([server.url]) as client:
        abstained, failed = ask(client, query(0), query(1))
    assert (abstained.status, abstained.actual_harm, abstained.reason) == ("abstain", None, "why")
    assert (failed.status, failed.actual_harm) == ("error", None)
    assert len(server.bodies) == 1


def test_the_token_and_the_time_left_are_sent() -> None:
    with serving(good) as (server,), client_of([server.url], token="secret", timeout_s=7) as client:
        ask(client, query(0))
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert 5 < float(server.headers[0]["X-Request-Timeout-S"]) <= 7


def test_connections_are_used_again() -> None:
    ports: set[int] = set()

    def noted(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        ports.add(http.client_address[1])
        good(judge, http, body)

    with serving(noted) as (judge,), client_of([judge.url], max_wait_s=0) as client:
        for i in range(20):
            ask(client, query(i))
    assert judge.asked == 20 and len(ports) == 1


def test_the_event_loop_is_never_blocked() -> None:
    async def longest_gap(client: JudgeClient) -> float:
        labels = [asyncio.create_task(client.label(query(i))) for i in range(100)]
        longest = 0.0
        while not all(label.done() for label in labels):
            start = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - start)
        return longest

    with serving(slow(2)) as (server,), client_of([server.url]) as client:
        assert asyncio.run(longest_gap(client)) < 1


def test_one_client_serves_several_event_loops() -> None:
    with serving(good) as (server,), client_of([server.url]) as client, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(ask, client, *(query(i, "a wrong note") for i in range(20))) for _ in range(4)]
        assert all(label.actual_harm is Truth.HARMFUL for job in jobs for label in job.result())


# --- what comes right on another try ---------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "refused"])
def test_a_passing_fault_costs_only_time(name: str) -> None:
    patience = {"timeout_s": 30, "attempt_timeout_s": 0.5}
    with serving(first(1, FAULTS[name])) as (judge,), client_of([judge.url], **patience) as client:
        labels = ask(client, query(0), query(1, "a wrong note"), query(2, "perhaps"), query(3, "a wrong note"))
    assert [label.actual_harm for label in labels] == [Truth.SAFE, Truth.HARMFUL, None, Truth.HARMFUL]
    assert [label.status for label in labels] == ["ok", "ok", "abstain", "ok"]
    assert (client.snapshot()["retries"] > 0) is (name not in ("slow", "two answers", "not a number"))
    assert all(json.dumps(label.extra, allow_nan=False, ensure_ascii=False).encode() for label in labels)


@pytest.mark.parametrize(
    "name",
    [
        *("missing row", "duplicated row", "contradicting row after", "unknown row", "one row too many"),
        *("another's key", "shifted and cut"),
    ],
)
def test_no_row_is_believed_of_an_answer_that_does_not_know_its_keys(name: str) -> None:
    with serving(first(1, FAULTS[name])) as (judge,), client_of([judge.url], max_wait_s=0.5) as client:
        ask(client, *(query(i) for i in range(4)))
    assert [len(body["queries"]) for body in judge.bodies] == [4, 4]


def test_what_is_asked_again_has_new_keys() -> None:
    """Else a late answer to the first request would fit the second."""
    with serving(first(2, status(500))) as (judge,), client_of([judge.url]) as client:
        ask(client, *(query(i) for i in range(4)))
        ask(client, *(query(i) for i in range(4)))
    keys = [each["game_idx"] for body in judge.bodies for each in body["queries"]]
    assert len(keys) == len(set(keys)) and max(keys) < 2**53
    with serving(good) as (judge,), client_of([judge.url]) as other:
        ask(other, query(0))
    assert judge.bodies[0]["queries"][0]["game_idx"] not in keys, "two clients of one judge"


def test_a_batch_that_fails_twice_is_halved_until_the_culprit_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrlhf_medical.judge.client.LONE_FAULTS", 5)

    def upset(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        poisoned = any("poison" in each["medical_note"] for each in body["queries"])
        (status(500) if poisoned else good)(judge, http, body)

    with serving(upset) as (judge,), client_of([judge.url], timeout_s=60, max_wait_s=0.5) as client:
        labels = ask(client, *(query(i, "poison" if i == 5 else "a note") for i in range(16)))
    assert [i for i, label in enumerate(labels) if label.status != "ok"] == [5]
    assert "500" in labels[5].reason and "6 faulty answers" in labels[5].reason
    assert [len(body["queries"]) for body in judge.bodies][:2] == [16, 16]


def test_retry_after_is_obeyed() -> None:
    with serving(first(1, status(429, Retry_After="0.3"))) as (server,), client_of([server.url]) as client:
        start = time.monotonic()
        (label,) = ask(client, query(0))
    assert label.status == "ok" and time.monotonic() - start > 0.3


# --- what does not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 404, 413, 422, 301])
def test_what_every_replica_refuses_is_final(code: int) -> None:
    with serving(status(code)) as (server,), client_of([server.url], timeout_s=10) as client:
        start = time.monotonic()
        (label,) = ask(client, query(0))
    assert label.status == "error" and str(code) in label.reason and "scripted" in label.reason
    assert server.asked == 1 and time.monotonic() - start < 8


def test_one_query_that_is_refused_does_not_spoil_the_others() -> None:
    def picky(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        spoilt = any("poison" in each["medical_note"] for each in body["queries"])
        (status(422) if spoilt else good)(judge, http, body)

    with serving(picky) as (server,), client_of([server.url]) as client:
        labels = ask(client, *(query(i, "poison" if i == 5 else "a note") for i in range(16)))
    assert [i for i, label in enumerate(labels) if label.status != "ok"] == [5]


@pytest.mark.parametrize(
    "change",
    [
        {"actual_harm": None},
        {"actual_harm": "harmful"},
        {"actual_harm": "unsafe"},
        {"error_present": False},
        {"error_present": "no"},
        {"status": "abstain"},
        {"status": "fine"},
        {"judge_reasoning": 5},
    ],
    ids=str,
)
def test_a_row_that_does_not_validate_is_no_label(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrlhf_medical.judge.client.LONE_FAULTS", 3)
    spoil = rows_changed(lambda rows: [row | change if row["actual_harm"] == "Harmful" else row for row in rows])
    with serving(spoil) as (server,), client_of([server.url], timeout_s=20) as client:
        spoilt, fine = ask(client, query(0, "a wrong note"), query(1))
    assert (spoilt.status, spoilt.actual_harm, fine.status) == ("error", None, "ok")


@pytest.mark.parametrize(
    "bad", [status(500), hang_up, slow(60), dripping, rows_changed(lambda rows: [])],
    ids=["500", "hang up", "hung", "dripping", "no rows"],
)  # fmt: skip
def test_the_deadline_holds_and_names_the_last_reason(bad: Fault) -> None:
    with serving(bad) as (server,), client_of([server.url], timeout_s=0.3) as client:
        start = time.monotonic()
        labels = ask(client, query(0), query(1))
        taken = time.monotonic() - start
    assert [label.status for label in labels] == ["error", "error"]
    assert "0.3 s" in labels[0].reason
    assert 0.2 < taken < 2.5
    assert client.snapshot()["error"] == 2


def test_refused_connections_are_an_error_not_an_exception() -> None:
    with client_of([f"http://127.0.0.1:{closed_port()}"], timeout_s=0.3) as client:
        (label,) = ask(client, query(0))
    assert label.status == "error" and "ConnectionError" in label.reason


def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    async def cancelled(client: JudgeClient) -> Label:
        task = asyncio.create_task(client.label(query(0)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await client.label(query(1))

    with serving(first(1, slow(0.3))) as (server,), client_of([server.url], max_wait_s=0) as client:
        assert asyncio.run(cancelled(client)).status == "ok"


# --- several replicas --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [status(500), hang_up, half_a_body], ids=["500", "hang up", "half a body"])
def test_another_replica_takes_over(bad: Fault) -> None:
    with serving(bad, good) as (broken, healthy), client_of([broken.url, healthy.url], batch_size=1) as client:
        labels = ask(client, *(query(i) for i in range(30)))
    assert all(label.status == "ok" for label in labels)


def test_a_replica_that_hangs_leaves_time_for_another() -> None:
    urls_of = operator.attrgetter("url")
    with serving(slow(20), good) as servers, client_of(map(urls_of, servers), batch_size=1, timeout_s=1) as client:
        labels = ask(client, *(query(i) for i in range(6)))
    assert all(label.status == "ok" for label in labels)


def test_a_replica_that_refuses_us_does_not_draw_all_queries_by_being_quick() -> None:
    servers, few = serving(status(401), slow(0.02)), {"batch_size": 1, "max_requests": 4}
    with servers as (locked, fine), client_of([locked.url, fine.url], **few) as client:
        assert {label.status for label in ask(client, *(query(i) for i in range(40)))} == {"ok"}
        assert locked.asked < 20
        assert "401" in client.last_words()[locked.url] and client.last_words()[fine.url] == ""


def backend_failed(rows: list[dict[str, Any]]) -> list[Any]:
    null = {"actual_harm": None, "error_present": None, "kind": "backend", "judge_reasoning": "the backend failed"}
    return [row | null | {"status": "error"} for row in rows]


def test_a_replica_whose_backend_fails_does_not_draw_all_queries_by_being_quick() -> None:
    servers, few = serving(rows_changed(backend_failed), slow(0.02)), {"batch_size": 1, "max_requests": 4}
    with servers as (broken, fine), client_of([broken.url, fine.url], **few) as client:
        assert {label.status for label in ask(client, *(query(i) for i in range(40)))} == {"ok"}
        assert broken.asked < 20
        assert "the backend failed" in client.last_words()[broken.url] and client.last_words()[fine.url] == ""


def test_a_backend_that_failed_is_asked_again_but_not_for_ever() -> None:
    stumbles = first(1, rows_changed(backend_failed))
    with serving(stumbles) as (server,), client_of([server.url]) as client:
        assert {label.status for label in ask(client, *(query(i) for i in range(4)))} == {"ok"}
    with serving(rows_changed(backend_failed)) as (server,), client_of([server.url]) as client:
        [label] = ask(client, query(7))
        assert (label.status, label.reason, label.extra["kind"]) == ("error", "the backend failed", "backend")
        assert label.extra["game_idx"] == 7 and server.asked == 3


def test_a_note_that_fells_the_backend_costs_the_others_nothing() -> None:
    def poisoned(rows: list[dict[str, Any]]) -> list[Any]:
        return backend_failed(rows) if any(row["actual_harm"] == "Harmful" for row in rows) else rows

    with serving(rows_changed(poisoned)) as (server,), client_of([server.url], max_wait_s=0.3) as client:
        labels = ask(client, *(query(i, "a wrong note" if i == 5 else "a note") for i in range(8)))
    assert [i for i, label in enumerate(labels) if label.status != "ok"] == [5]


def test_a_replica_that_was_killed_comes_back() -> None:
    with serving(good, good) as (stays, goes), client_of([stays.url, goes.url], batch_size=1) as client:
        assert all(label.status == "ok" for label in ask(client, *(query(i) for i in range(10))))
        goes.stop()
        assert all(label.status == "ok" for label in ask(client, *(query(i) for i in range(10))))
        assert "ConnectionError" in client.last_words()[goes.url]
        before = goes.asked
        goes.start()
        deadline = time.monotonic() + 30
        while goes.asked == before and time.monotonic() < deadline:
            assert all(label.status == "ok" for label in ask(client, *(query(i) for i in range(10))))
        assert goes.asked > before


def test_a_replica_that_still_hangs_keeps_nobody_waiting_once_it_is_known() -> None:
    """Its trial begins with GET /health, which says no, and costs no query its time."""
    with serving(slow(60), good) as (hangs, fine):
        hangs.healthy = False
        with client_of([hangs.url, fine.url], batch_size=1, timeout_s=20, attempt_timeout_s=0.5) as client:
            ask(client, *(query(i) for i in range(8)))
            asked, start = hangs.asked, time.monotonic()
            while time.monotonic() < start + 1.5:
                ask(client, query(0))
            assert hangs.asked == asked


# --- life and death ------------------------------------------------------------------------------------


def test_wait_ready() -> None:
    with serving(good) as (server,), client_of([f"http://127.0.0.1:{closed_port()}", server.url]) as client:
        client.wait_ready(5)
    with client_of([f"http://127.0.0.1:{closed_port()}"]) as client:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no judge was ready within 0\.3 s"):
            client.wait_ready(0.3)
        assert time.monotonic() - start < 10


def test_a_judge_that_is_ready_and_refuses_us_is_told_at_the_start() -> None:
    with serving(status(401), good) as (locked, fine):
        with client_of([locked.url]) as client, pytest.raises(UserError, match=r"401.*judge\.token_file"):
            client.wait_ready(5)
        with client_of([locked.url, fine.url]) as client:
            client.wait_ready(5)
    with serving(status(500)) as (stumbles,), client_of([stumbles.url]) as client:
        client.wait_ready(5)


def test_close_settles_what_is_waiting() -> None:
    async def closed_under_way(client: JudgeClient) -> Label:
        task = asyncio.create_task(client.label(query(0)))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(client.close)
        return await task

    client = JudgeClient([f"http://127.0.0.1:{closed_port()}"], max_wait_s=5)
    label = asyncio.run(closed_under_way(client))
    assert label.status == "error" and "closed" in label.reason
    client.close()
    (after,) = ask(client, query(0))
    assert after.status == "error" and "closed" in after.reason


@pytest.mark.parametrize("urls", [[], ["localhost:8000"], ["ftp://x"], ["http://"], ["http://a:99999"]], ids=str)
def test_bad_urls_are_refused_at_once(urls: list[str]) -> None:
    with pytest.raises(UserError):
        JudgeClient(urls)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        *[("0", 0, 0), ("2.5", 2.5, 2.5), ("-3", 0, 0), ("99999", 30, 30), ("inf", 30, 30)],
        *[("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), (format_datetime(datetime.now(UTC) + timedelta(hours=1)), 30, 30)],
    ],
    ids=["0", "2.5", "negative", "long", "for ever", "past date", "date"],
)
def test_retry_after_is_read_and_capped(value: str, low: float, high: float) -> None:
    found = retry_after(value)
    assert found is not None and low <= found <= high


@pytest.mark.parametrize("value", [None, "", "soon", "nan", "Wed, 99 Oct"])
def test_a_retry_after_that_says_nothing(value: str | None) -> None:
    assert retry_after(value) is None
