"""A judge over real sockets that does, on purpose, all that judges do wrong. Its truth is plain from the text, so
that every label can be checked: a note is Harmful when it differs from its reference, and abstained on when it
says "perhaps"."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openrlhf_medical.judge.schema import STOPPED

Body = dict[str, Any]
Row = dict[str, Any]
Fault = Callable[["FaultyJudge", BaseHTTPRequestHandler, Body], None]


def truth_of(original: str, note: str) -> str:
    """Safe, Harmful or abstain."""
    return "abstain" if "perhaps" in note else "Safe" if note == original else "Harmful"


def row_of(query: Body) -> Row:
    truth = truth_of(query["original_note"], query["medical_note"])
    known = truth != "abstain"
    return {
        "game_idx": query["game_idx"],
        "status": "ok" if known else "abstain",
        "actual_harm": truth if known else None,
        "error_present": truth == "Harmful" if known else None,
        "judge_reasoning": "scripted",
    }


def opposite(row: Row) -> Row:
    """The same row with the wrong label."""
    harmful = row["actual_harm"] != "Harmful"
    return row | {"status": "ok", "actual_harm": "Harmful" if harmful else "Safe", "error_present": harmful}


def reply(http: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
    http.send_response(code)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        http.send_header(name.replace("_", "-"), value)
    http.end_headers()
    http.wfile.write(body)


def answer(http: BaseHTTPRequestHandler, rows: list[Any]) -> None:
    reply(http, 200, packed(rows))


def packed(rows: list[Any]) -> bytes:
    return json.dumps({"labels": rows, "model": "scripted"}).encode()


# --- what can go wrong ---------------------------------------------------------------------------------


def good(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    answer(http, [judge.row_of(query) for query in reversed(body["queries"])])


def status(code: int, **headers: str) -> Fault:
    return lambda judge, http, body: reply(http, code, b'{"detail": "scripted"}', **headers)


def rows_changed(change: Callable[[list[Row]], list[Any]]) -> Fault:
    return lambda judge, http, body: answer(http, change([judge.row_of(query) for query in body["queries"]]))


def slow(seconds: float) -> Fault:
    """Right, but late; or, for longer than anybody waits, hung."""

    def handle(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
        if not judge.stopping.wait(seconds):
            good(judge, http, body)

    return handle


def half_a_body(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    full = packed([judge.row_of(query) for query in body["queries"]])
    http.send_response(200)
    http.send_header("Content-Length", str(len(full)))
    http.end_headers()
    http.wfile.write(full[: len(full) // 2])
    http.close_connection = True


def half_a_body_that_parses(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    """Without a length, and cut where it is JSON all the same."""
    http.send_response(200)
    http.send_header("Connection", "close")
    http.end_headers()
    http.wfile.write(packed([judge.row_of(query) for query in body["queries"][: len(body["queries"]) // 2]]))
    http.close_connection = True


def half_a_head(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    http.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    http.close_connection = True


def hang_up(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    http.connection.shutdown(socket.SHUT_RDWR)
    http.close_connection = True


def reset(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    http.connection.close()
    http.close_connection = True


def dripping(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    http.send_response(200)
    http.send_header("Content-Length", "1000000")
    http.end_headers()
    while not judge.stopping.wait(0.05):
        http.wfile.write(b" ")


def stale(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    """The answer to the request before this one, of whoever it was, with wrong labels."""
    answer(http, [opposite(judge.row_of(query)) for query in judge.before["queries"]])


def two_answers(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
    """The right one, and at once another, which the next request on this connection would read as its own."""
    good(judge, http, body)
    answer(http, [opposite(judge.row_of(query)) for query in body["queries"]])


def neighbours_key(rows: list[Row]) -> list[Row]:
    """The last row carries the first one's key."""
    return [*rows[:-1], rows[-1] | {"game_idx": rows[0]["game_idx"]}] if len(rows) > 1 else [*rows, opposite(rows[0])]


def shifted(rows: list[Row]) -> list[Row]:
    """Every row carries the key of the one after it."""
    return [row | {"game_idx": row["game_idx"] + 1} for row in rows]


def shifted_and_cut(rows: list[Row]) -> list[Row]:
    """Of a batch, all keys are known and none comes twice; yet every row is another's."""
    return shifted(rows)[:-1]


NOT_JUDGED = {"status": "error", "actual_harm": None, "error_present": None, "kind": STOPPED}

FAULTS: Mapping[str, Fault] = {
    "error 500": status(500),
    "full": status(429, Retry_After="0.05"),
    "loading": status(503, Retry_After="0"),
    "bad gateway": status(502),
    "refused": status(401),
    "garbage": lambda judge, http, body: reply(http, 200, b"<html>\xff not json"),
    "deep garbage": lambda judge, http, body: reply(http, 200, b"[" * 100_000),
    "no rows": lambda judge, http, body: reply(http, 200, b'{"labels": {"0": 1}}'),
    "half a body": half_a_body,
    "half a body that parses": half_a_body_that_parses,
    "half a head": half_a_head,
    "hang up": hang_up,
    "reset": reset,
    "dripping": dripping,
    "hung": slow(60),
    "slow": slow(0.2),
    "stale": stale,
    "two answers": two_answers,
    "missing row": rows_changed(lambda rows: rows[1:]),
    "empty": rows_changed(lambda rows: []),
    "duplicated row": rows_changed(lambda rows: [*rows, rows[0]]),
    "contradicting rows": rows_changed(lambda rows: [opposite(rows[0]), *rows]),
    "contradicting row after": rows_changed(lambda rows: [*rows, opposite(rows[0])]),
    "one row too many": rows_changed(lambda rows: [*rows, opposite(rows[0]) | {"game_idx": 5}]),
    "another's key": rows_changed(neighbours_key),
    "unknown row": rows_changed(lambda rows: [*rows[1:], rows[0] | {"game_idx": 5}]),
    "shifted keys": rows_changed(shifted),
    "shifted and cut": rows_changed(shifted_and_cut),
    "key as text": rows_changed(lambda rows: [row | {"game_idx": str(row["game_idx"])} for row in rows]),
    "key as fraction": rows_changed(lambda rows: [row | {"game_idx": float(row["game_idx"])} for row in rows]),
    "no label": rows_changed(lambda rows: [rows[0] | {"status": "ok", "actual_harm": None}, *rows[1:]]),
    "contradiction": rows_changed(lambda rows: [opposite(row) | {"status": "abstain"} for row in rows]),
    "not a number": rows_changed(lambda rows: [rows[0] | {"confidence": float("nan")}, *rows[1:]]),
    "stopping": rows_changed(lambda rows: [row | NOT_JUDGED for row in rows]),
    "half a character": rows_changed(lambda rows: [rows[0] | {"hint": "\ud800"}, *rows[1:]]),
}
"""By name. Each may put wrong labels into rows that no careful client takes."""


def faults_now_and_then(share: float, seed: int) -> Fault:
    """One of all faults in a ``share`` of requests, as drawn; else what is right."""
    rng, names = random.Random(seed), tuple(FAULTS)
    lock = threading.Lock()

    def handle(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: Body) -> None:
        with lock:
            name = rng.choice(names) if rng.random() < share else "good"
        judge.served[name] += 1
        FAULTS.get(name, good)(judge, http, body)

    return handle


# --- the server ----------------------------------------------------------------------------------------


class FaultyJudge:
    """Answers POSTs with a scripted handler and remembers them. ``start`` and ``stop`` may take turns: the port
    stays. A context manager.

    ``bodies``, ``headers``: of the requests so far; ``before``: the request before the one being answered;
    ``served``: for handlers that count; ``healthy``: what GET /health says; ``row_of``: its answer to one query.
    """

    def __init__(self, handler: Fault = good, port: int = 0, row_of: Callable[[Body], Row] = row_of) -> None:
        self.handler, self.port, self.row_of = handler, port, row_of
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.served: Counter[str] = Counter()
        self.healthy = True
        self.stopping = threading.Event()
        self._server: _Server | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def before(self) -> Body:
        return self.bodies[-2] if len(self.bodies) > 1 else {"queries": []}

    @property
    def asked(self) -> int:
        """Requests so far."""
        return len(self.bodies)

    def start(self) -> None:
        self.stopping.clear()
        self._server = _Server(self)
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        """Connections are refused from now on, and those that are open are cut."""
        if self._server is not None:
            self.stopping.set()
            self._server.stop()
            self._server = None

    def __enter__(self) -> FaultyJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, judge: FaultyJudge) -> None:
        self._connections: set[socket.socket] = set()

        class Http(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                reply(self, 200 if judge.healthy else 503, b'{"status": "ok", "model": "scripted"}')

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.headers.append(dict(self.headers))
                judge.bodies.append(body)
                judge.handler(judge, self, body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", judge.port), Http)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up on us is part of these tests, and no news."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def flapping(judge: FaultyJudge, up_s: float, down_s: float):
    """Stops the judge and starts it again, over and over, while the context lasts; it is up in the end."""
    done = threading.Event()

    def flap() -> None:
        while not done.wait(up_s):
            judge.stop()
            time.sleep(down_s)
            judge.start()

    thread = threading.Thread(target=flap, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
