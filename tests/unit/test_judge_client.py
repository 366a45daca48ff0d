"""The judge client over real sockets, against servers that do all that servers do wrong."""

from __future__ import annotations

import asyncio
import json
import operator
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Query, Truth
from openrlhf_medical.judge.client import JudgeClient

Handler = Callable[["Server", BaseHTTPRequestHandler, dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """Answers POSTs with a scripted handler and remembers them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: Handler, port: int = 0) -> None:
        self.handler = handler
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Http(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                reply(self, 200, b"{}")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.headers.append(dict(self.headers))
                outer.requests.append(body)
                outer.handler(outer, self, body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", port), Http)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up on us is part of these tests, and no news."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def reply(http: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
    http.send_response(code)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        http.send_header(name.replace("_", "-"), value)
    http.end_headers()
    http.wfile.write(body)


def row(query: dict[str, Any], **changes: Any) -> dict[str, Any]:
    harmful = "wrong" in query["medical_note"]
    return {
        "game_idx": query["game_idx"],
        "status": "ok",
        "actual_harm": "Harmful" if harmful else "Safe",
        "error_present": harmful,
    } | changes


def answer(http: BaseHTTPRequestHandler, rows: list[Any]) -> None:
    reply(http, 200, json.dumps({"labels": rows, "model": "scripted"}).encode())


def good(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    answer(http, [row(query) for query in reversed(body["queries"])])


def first(count: int, bad: Handler, then: Handler = good) -> Handler:
    """``bad`` for the first requests."""

    def handle(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        (bad if len(server.requests) <= count else then)(server, http, body)

    return handle


def status(code: int, **headers: str) -> Handler:
    return lambda server, http, body: reply(http, code, b'{"detail": "scripted"}', **headers)


def rows_changed(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Handler:
    return lambda server, http, body: answer(http, change([row(query) for query in body["queries"]]))


def half_a_body(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    full = json.dumps({"labels": [row(query) for query in body["queries"]]}).encode()
    http.send_response(200)
    http.send_header("Content-Length", str(len(full)))
    http.end_headers()
    http.wfile.write(full[: len(full) // 2])
    http.close_connection = True


def hang_up(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    http.connection.shutdown(socket.SHUT_RDWR)
    http.close_connection = True


def slow(seconds: float) -> Handler:
    def handle(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        good(server, http, body)

    return handle


def dripping(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    http.send_response(200)
    http.send_header("Content-Length", "1000000")
    http.end_headers()
    try:
        while True:
            http.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        pass


@contextmanager
def serving(*handlers: Handler) -> Iterator[list[Server]]:
    servers = [Server(handler) for handler in handlers]
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


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
        labels = ask(client, *(query(i, "wrong" if i % 3 == 0 else "right") for i in range(200)))
    assert [label.actual_harm is Truth.HARMFUL for label in labels] == [i % 3 == 0 for i in range(200)]
    assert [label.extra["game_idx"] for label in labels] == list(range(200))
    sizes = [len(body["queries"]) for body in server.requests]
    assert sum(sizes) == 200 and max(sizes) <= 64
    assert len(sizes) < 20, "four requests, or a few more where the machine was too busy to fill them in time"
    counts = client.snapshot()
    assert (counts["ok"], counts["error"], counts["retries"], counts["requests"]) == (200, 0, 0, len(sizes))
    assert 0 < counts["latency_s"] < 5 and 0 < counts["latency_p95_s"] < 5


def test_a_game_idx_may_come_twice() -> None:
    with serving(good) as (server,), client_of([server.url]) as client:
        labels = ask(client, query(7, "wrong"), query(7, "right"), query(7, "wrong"))
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
    assert len(server.requests) == 1


def test_the_token_is_sent() -> None:
    with serving(good) as (server,), client_of([server.url], token="secret") as client:
        ask(client, query(0))
    assert server.headers[0]["Authorization"] == "Bearer secret"


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
        jobs = [threads.submit(ask, client, *(query(i, "wrong") for i in range(20))) for _ in range(4)]
        assert all(label.actual_harm is Truth.HARMFUL for job in jobs for label in job.result())


# --- what comes right on another try ---------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        status(500),
        status(503, Retry_After="0"),
        status(429, Retry_After="0.1"),
        status(502, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        half_a_body,
        hang_up,
        lambda server, http, body: reply(http, 200, b"<html>not json"),
        lambda server, http, body: reply(http, 200, b"[1, 2]"),
        lambda server, http, body: reply(http, 200, b'{"labels": {"0": 1}}'),
        rows_changed(lambda rows: rows[1:]),
        rows_changed(lambda rows: [*rows, rows[0]]),
        rows_changed(lambda rows: [*rows, rows[0] | {"actual_harm": "Harmful", "error_present": True}]),
        rows_changed(lambda rows: [*rows[1:], rows[0] | {"game_idx": 999_999}]),
        rows_changed(lambda rows: [*rows[1:], rows[0] | {"game_idx": "0"}, None, 5]),
        rows_changed(lambda rows: [*rows[1:], rows[0] | {"game_idx": True}]),
    ],
    ids=[
        "500", "503", "429", "502 date", "half body", "hang up", "html", "list", "labels object", "missing",
        "duplicated", "contradicting", "unknown", "key text", "key bool",
    ],
)  # fmt: skip
def test_a_passing_fault_costs_only_time(bad: Handler) -> None:
    with serving(first(1, bad)) as (server,), client_of([server.url], timeout_s=10) as client:
        labels = ask(client, query(0, "right"), query(1, "wrong"), query(2, "right"))
    assert [label.actual_harm for label in labels] == [Truth.SAFE, Truth.HARMFUL, Truth.SAFE]
    assert client.snapshot()["retries"] >= 1
    # Rows that could be trusted were kept: what is asked again is what had none.
    assert len(server.requests[1]["queries"]) <= 3


def test_only_the_queries_without_a_row_are_asked_again() -> None:
    with serving(first(1, rows_changed(lambda rows: rows[1:]))) as (server,), client_of([server.url]) as client:
        ask(client, query(0), query(1), query(2))
    assert [len(body["queries"]) for body in server.requests] == [3, 1]


def test_retry_after_is_obeyed() -> None:
    with serving(first(1, status(429, Retry_After="0.3"))) as (server,), client_of([server.url]) as client:
        start = time.monotonic()
        (label,) = ask(client, query(0))
    assert label.status == "ok" and time.monotonic() - start > 0.3


# --- what does not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 404, 413, 422, 301])
def test_a_refusal_is_final(code: int) -> None:
    with serving(status(code)) as (server,), client_of([server.url], timeout_s=10) as client:
        start = time.monotonic()
        (label,) = ask(client, query(0))
    assert label.status == "error" and str(code) in label.reason and "scripted" in label.reason
    assert len(server.requests) == 1 and time.monotonic() - start < 8


def test_one_query_that_is_refused_does_not_spoil_the_others() -> None:
    def picky(server: Server, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        spoilt = any("poison" in each["medical_note"] for each in body["queries"])
        (status(422) if spoilt else good)(server, http, body)

    with serving(picky) as (server,), client_of([server.url]) as client:
        labels = ask(client, *(query(i, "poison" if i == 5 else "right") for i in range(16)))
    assert [i for i, label in enumerate(labels) if label.status != "ok"] == [5]


@pytest.mark.parametrize(
    "change",
    [
        {"actual_harm": None},
        {"actual_harm": "harmful"},
        {"actual_harm": "unsafe"},
        {"error_present": True},
        {"error_present": "no"},
        {"status": "abstain"},
        {"status": "fine"},
        {"judge_reasoning": 5},
    ],
    ids=str,
)
def test_a_row_that_does_not_validate_is_no_label(change: dict[str, Any]) -> None:
    spoil = rows_changed(lambda rows: [rows[0] | change, *rows[1:]])
    with serving(spoil) as (server,), client_of([server.url], timeout_s=5) as client:
        spoilt, fine = ask(client, query(0), query(1))
    assert (spoilt.status, spoilt.actual_harm, fine.status) == ("error", None, "ok")


@pytest.mark.parametrize(
    "bad", [status(500), hang_up, slow(3), dripping, rows_changed(lambda rows: [])], ids=lambda bad: bad.__name__
)
def test_the_deadline_holds_and_names_the_last_reason(bad: Handler) -> None:
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


@pytest.mark.parametrize("bad", [status(500), hang_up, half_a_body], ids=lambda bad: bad.__name__)
def test_another_replica_takes_over(bad: Handler) -> None:
    with serving(bad, good) as (broken, healthy), client_of([broken.url, healthy.url], batch_size=1) as client:
        labels = ask(client, *(query(i) for i in range(30)))
    assert all(label.status == "ok" for label in labels)


def test_a_replica_that_hangs_leaves_time_for_another() -> None:
    urls_of = operator.attrgetter("url")
    with serving(slow(20), good) as servers, client_of(map(urls_of, servers), batch_size=1, timeout_s=1) as client:
        labels = ask(client, *(query(i) for i in range(6)))
    assert all(label.status == "ok" for label in labels)


def test_a_replica_that_was_killed_comes_back() -> None:
    with serving(good, good) as (stays, goes):
        port = goes.server_address[1]
        with client_of([stays.url, goes.url], batch_size=1, timeout_s=10) as client:
            assert all(label.status == "ok" for label in ask(client, *(query(i) for i in range(10))))
            goes.stop()
            assert all(label.status == "ok" for label in ask(client, *(query(i) for i in range(10))))
            back = Server(good, port)
            try:
                deadline = time.monotonic() + 8
                while not back.requests and time.monotonic() < deadline:
                    assert all(label.status == "ok" for label in ask(client, *(query(i) for i in range(10))))
                assert back.requests
            finally:
                back.stop()


# --- life and death ------------------------------------------------------------------------------------


def test_wait_ready() -> None:
    with serving(good) as (server,), client_of([f"http://127.0.0.1:{closed_port()}", server.url]) as client:
        client.wait_ready(5)
    with client_of([f"http://127.0.0.1:{closed_port()}"]) as client:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no judge was ready within 0\.3 s"):
            client.wait_ready(0.3)
        assert time.monotonic() - start < 10


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
