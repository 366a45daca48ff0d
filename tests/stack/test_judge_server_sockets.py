"""The judge server over real sockets: clients that leave, deadlines, stopping, exposure, hostile input."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.findings import BlindPair, Finding
from openrlhf_medical.judge.limits import Limits
from openrlhf_medical.judge.listen import bind, check_exposure, make_server
from openrlhf_medical.judge.process import JudgeProcess, start_judge_process
from openrlhf_medical.judge.schema import MAX_BODY_BYTES, TIMEOUT_HEADER
from openrlhf_medical.judge.server import create_app

PATIENCE_S = 20.0  # of a test; nothing takes as long unless it is broken


def queries(*notes: str) -> dict[str, Any]:
    return {"queries": [{"game_idx": i, "original_note": "a", "medical_note": note} for i, note in enumerate(notes)]}


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Gated:
    """Judges when told to, and remembers what reached it."""

    model_name = "gated"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[str]] = []

    def load(self) -> None:
        pass

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        notes = [pair.medical_note for pair in pairs]
        self.batches.append(notes)
        self.open.wait(PATIENCE_S)
        if "poison" in notes:
            raise RuntimeError(f"cannot judge {notes}")
        return [Finding("ok", Truth.SAFE, reasoning=note) for note in notes]


@contextlib.contextmanager
def served(backend: Any, limits: Limits | None = None, **options: Any) -> Iterator[str]:
    """The app on a real port, its loop in a thread of this process."""
    app = create_app(backend, limits=limits, **options)
    server = make_server(app, app.state.judging.stop, 1.0)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        eventually(lambda: requests.get(f"{url}/health", timeout=5).status_code == 200)
        yield url
    finally:
        if isinstance(backend, Gated):
            backend.open.set()
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
        app.state.judging.close(PATIENCE_S)


def metric(url: str, name: str) -> float:
    lines = requests.get(f"{url}/metrics", timeout=5).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def send(url: str, body: Any, path: str = "/judge", **headers: str) -> socket.socket:
    """A request on a socket of its own, which nobody reads from yet."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: judge\r\nContent-Length: {len(content)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.sendall(head.encode() + b"\r\n" + content)
    return connection


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


# --- sharing the backend ----------------------------------------------------------------------------------


def test_requests_that_wait_share_a_batch_and_each_gets_its_own_rows() -> None:
    backend = Gated()
    with served(backend) as url:
        asked = [in_background(lambda: requests.post(f"{url}/judge", json=queries("first"), timeout=PATIENCE_S))]
        eventually(lambda: len(backend.batches) == 1)
        for notes in (("b", "c"), ("d",)):
            body = queries(*notes)
            asked.append(in_background(lambda body=body: requests.post(f"{url}/judge", json=body, timeout=PATIENCE_S)))
        eventually(lambda: metric(url, "judge_queue_queries") == 3)
        backend.open.set()
        for thread, _ in asked:
            thread.join(PATIENCE_S)
    assert sorted(map(len, backend.batches)) == [1, 3]
    assert [len(answers[0].json()["labels"]) for _, answers in asked] == [1, 2, 1]


def test_a_request_larger_than_a_batch_gets_each_query_its_own_row() -> None:
    backend = Gated()
    backend.open.set()
    notes = [f"note {i}" for i in range(10)]
    with served(backend, Limits(max_batch=3)) as url:
        rows = requests.post(f"{url}/judge", json=queries(*notes), timeout=PATIENCE_S).json()["labels"]
    assert [len(batch) for batch in backend.batches] == [3, 3, 3, 1]
    assert [(row["game_idx"], row["judge_reasoning"]) for row in rows] == list(enumerate(notes))


def test_a_note_on_which_the_backend_fails_costs_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    backend = Gated()
    with served(backend) as url:
        asked = [in_background(lambda: requests.post(f"{url}/judge", json=queries("first"), timeout=PATIENCE_S))]
        eventually(lambda: len(backend.batches) == 1)
        for i, note in enumerate(("poison", "fine")):
            body = queries(note)
            asked.append(in_background(lambda body=body: requests.post(f"{url}/judge", json=body, timeout=PATIENCE_S)))
            eventually(lambda i=i: metric(url, "judge_queue_queries") == i + 1)
        backend.open.set()
        for thread, _ in asked:
            thread.join(PATIENCE_S)
    assert backend.batches[1:] == [["poison", "fine"], ["poison"], ["fine"]]
    rows = [answers[0].json()["labels"][0] for _, answers in asked]
    assert [(row["status"], row["kind"]) for row in rows] == [("ok", ""), ("error", "backend"), ("ok", "")]
    assert "RuntimeError at" in caplog.text and "poison" not in caplog.text


def test_a_backend_that_always_fails_is_told_by_health() -> None:
    backend = Gated()
    backend.open.set()
    with served(backend) as url:
        for _ in range(3):
            assert requests.get(f"{url}/health", timeout=5).status_code == 200
            requests.post(f"{url}/judge", json=queries("poison"), timeout=PATIENCE_S)
        health = requests.get(f"{url}/health", timeout=5)
        assert health.status_code == 503 and "failed 3 times" in health.text
        assert requests.post(f"{url}/judge", json=queries("fine"), timeout=PATIENCE_S).status_code == 200
        assert requests.get(f"{url}/health", timeout=5).status_code == 200


# --- full, late, gone ---------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_takes_again() -> None:
    backend = Gated()
    with served(backend, Limits(max_queue=4)) as url:
        waiting = [send(url, queries("first"))]
        eventually(lambda: len(backend.batches) == 1)
        waiting.append(send(url, queries("a", "b", "c", "d")))
        eventually(lambda: metric(url, "judge_queue_queries") == 4)
        fastest = PATIENCE_S
        for path, body in (("/judge", queries("e")), ("/evaluate", queries("e")["queries"][0]), ("/judge", "junk")):
            start = time.monotonic()
            answer = requests.post(f"{url}{path}", json=body, timeout=PATIENCE_S)
            fastest = min(fastest, time.monotonic() - start)
            assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
            assert "detail" in answer.json()
        assert fastest < 0.1
        assert metric(url, "judge_refused_total") == 3
        backend.open.set()
        assert all(b"200 OK" in connection.recv(100) for connection in waiting)
        assert requests.post(f"{url}/judge", json=queries("e"), timeout=PATIENCE_S).status_code == 200
        for connection in waiting:
            connection.close()
    assert backend.batches == [["first"], ["a", "b", "c", "d"], ["e"]]


def test_too_many_bytes_under_way_are_refused() -> None:
    backend = Gated()
    with served(backend, Limits(max_memory_bytes=1000)) as url:
        first = send(url, queries("x" * 700))
        eventually(lambda: len(backend.batches) == 1)
        assert requests.post(f"{url}/judge", json=queries("x" * 700), timeout=PATIENCE_S).status_code == 429
        backend.open.set()
        assert b"200 OK" in first.recv(100)
        first.close()
        eventually(
            lambda: requests.post(f"{url}/judge", json=queries("x" * 700), timeout=PATIENCE_S).status_code == 200
        )


@pytest.mark.parametrize("by_header", [True, False])
def test_what_is_not_judged_in_time_is_an_error_and_never_reaches_the_backend(by_header: bool) -> None:
    backend = Gated()
    limits = Limits(max_batch=2) if by_header else Limits(max_batch=2, request_timeout_s=0.3)
    headers = {TIMEOUT_HEADER: "0.3"} if by_header else {}
    with served(backend, limits) as url:
        answer = requests.post(f"{url}/judge", json=queries("a", "b", "c"), headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 200
        rows = answer.json()["labels"]
        assert [(row["game_idx"], row["status"], row["kind"], row["actual_harm"]) for row in rows] == [
            (i, "error", "expired", None) for i in range(3)
        ]
        assert "0.3 s" in rows[0]["judge_reasoning"]
        assert metric(url, "judge_expired_queries_total") == 3 and metric(url, "judge_queue_queries") == 0
        backend.open.set()
        assert requests.post(f"{url}/judge", json=queries("d"), timeout=PATIENCE_S).status_code == 200
    assert backend.batches == [["a", "b"], ["d"]]


def test_what_was_judged_in_time_is_kept() -> None:
    class Second(Gated):
        def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
            if not self.batches:
                self.open.set()
            findings = super().judge(pairs)
            self.open.clear()
            return findings

    with served(Second(), Limits(max_batch=2)) as url:
        header = {TIMEOUT_HEADER: "0.5"}
        rows = requests.post(f"{url}/judge", json=queries("a", "b", "c"), headers=header, timeout=PATIENCE_S).json()
    assert [row["status"] for row in rows["labels"]] == ["ok", "ok", "error"]


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf", ""])
def test_a_time_that_is_none_is_refused_by_name(given: str) -> None:
    with served(Gated()) as url:
        answer = requests.post(f"{url}/judge", json=queries("a"), headers={TIMEOUT_HEADER: given}, timeout=PATIENCE_S)
    assert answer.status_code == 422 and TIMEOUT_HEADER in answer.json()["detail"]


def test_a_body_that_does_not_come_in_time_is_refused() -> None:
    with served(Gated(), Limits(request_timeout_s=0.2)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(b"POST /judge HTTP/1.1\r\nHost: judge\r\nContent-Length: 100\r\n\r\n{")
            assert b"408" in connection.recv(100)


def test_the_work_of_a_client_that_left_never_reaches_the_backend() -> None:
    backend = Gated()
    with served(backend) as url:
        first = send(url, queries("first"))
        eventually(lambda: len(backend.batches) == 1)
        leaving = [send(url, queries("left", "left")) for _ in range(3)]
        staying = send(url, queries("stays"))
        eventually(lambda: metric(url, "judge_queue_queries") == 7)
        for connection in leaving:
            connection.close()
        eventually(lambda: metric(url, "judge_queue_queries") == 1)
        assert metric(url, "judge_cancelled_queries_total") == 6
        backend.open.set()
        assert b"200 OK" in first.recv(100) and b"200 OK" in staying.recv(100)
        first.close()
        staying.close()
    assert backend.batches == [["first"], ["stays"]]


def test_a_backend_that_hangs_is_told_by_health() -> None:
    backend = Gated()
    with served(backend, Limits(request_timeout_s=0.2)) as url:
        requests.post(f"{url}/judge", json=queries("a"), timeout=PATIENCE_S)
        eventually(lambda: requests.get(f"{url}/health", timeout=5).status_code == 503)
        assert "on one batch" in requests.get(f"{url}/health", timeout=5).text
        backend.open.set()
        eventually(lambda: requests.get(f"{url}/health", timeout=5).status_code == 200)


def test_notes_are_logged_only_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    for log_text in (False, True):
        backend = Gated()
        backend.open.set()
        caplog.clear()
        with caplog.at_level(logging.INFO), served(backend, log_text=log_text) as url:
            requests.post(f"{url}/judge", json=queries("a note of mine"), timeout=PATIENCE_S)
            requests.post(f"{url}/judge", json=queries("poison"), timeout=PATIENCE_S)
        assert ("a note of mine" in caplog.text) is log_text
        assert ("cannot judge ['poison']" in caplog.text) is log_text


# --- as a process -------------------------------------------------------------------------------------------

SLEEPING = """
import argparse, pathlib, time
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge import build, server
from openrlhf_medical.judge.findings import Finding
from openrlhf_medical.judge.limits import Limits
from openrlhf_medical.judge.spec import JudgeSpec

class Sleeping:
    model_name = "sleeping"
    def load(self):
        time.sleep({load_s})
    def judge(self, pairs):
        time.sleep({batch_s})
        return [Finding("ok", Truth.SAFE)] * len(pairs)

build.BACKENDS["sleeping"] = lambda spec: Sleeping()
parser = argparse.ArgumentParser()
for option in ("--backend", "--host", "--log-text"):
    parser.add_argument(option)
parser.add_argument("--port", type=int)
parser.add_argument("--port-file", type=pathlib.Path)
parser.add_argument("--exit-with-parent", action="store_true")
options = vars(parser.parse_args())
server.serve(JudgeSpec(backend=options.pop("backend")), **options, limits=Limits(grace_s={grace_s}))
"""


def sleeping(tmp_path: Path, *, load_s: float = 0, batch_s: float, grace_s: float) -> JudgeProcess:
    program = (sys.executable, "-c", SLEEPING.format(load_s=load_s, batch_s=batch_s, grace_s=grace_s))
    return start_judge_process(log_file=tmp_path / "judge.log", backend="sleeping", program=program)


def terminate(judge: JudgeProcess) -> None:
    os.kill(judge.pid, signal.SIGTERM)


def refuses_connections(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def test_told_to_stop_it_finishes_what_it_has(tmp_path: Path) -> None:
    with sleeping(tmp_path, batch_s=0.8, grace_s=PATIENCE_S) as judge:
        asked = [
            in_background(lambda: requests.post(f"{judge.url}/judge", json=queries("a", "b"), timeout=PATIENCE_S))
            for _ in range(2)
        ]
        eventually(lambda: metric(judge.url, "judge_queries_in_flight") == 4)
        terminate(judge)
        eventually(lambda: refuses_connections(judge.url))
        assert judge.running
        for thread, answers in asked:
            thread.join(PATIENCE_S)
            assert [row["status"] for row in answers[0].json()["labels"]] == ["ok", "ok"]
        assert judge.stop() == 0


def test_what_is_not_finished_in_the_grace_time_is_an_error_and_the_exit_is_clean(tmp_path: Path) -> None:
    with sleeping(tmp_path, batch_s=60, grace_s=0.3) as judge:
        thread, answers = in_background(
            lambda: requests.post(f"{judge.url}/judge", json=queries("a"), timeout=PATIENCE_S)
        )
        eventually(lambda: metric(judge.url, "judge_queries_in_flight") == 1)
        assert judge.stop() == 0
        thread.join(PATIENCE_S)
    [row] = answers[0].json()["labels"]
    assert (row["status"], row["kind"], row["actual_harm"]) == ("error", "stopped", None)


def test_from_the_first_connection_on_health_is_answered_and_true(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    program = SLEEPING.format(load_s=0.5, batch_s=0, grace_s=1)
    words = ["--backend", "sleeping", "--host", "127.0.0.1", "--port", str(port), "--exit-with-parent"]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL)
    said: list[int] = []
    try:
        end = time.monotonic() + PATIENCE_S
        while 200 not in said and time.monotonic() < end:
            with contextlib.suppress(requests.ConnectionError):
                said.append(requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code)
            time.sleep(0.02)
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert said[0] == 503 and said[-1] == 200 and set(said) == {503, 200}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.3.2.1", "::1"])
def test_loopback_needs_no_token(host: str) -> None:
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.9"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    check_exposure(host, "s3cret")
    with pytest.raises(UserError, match="--token-file"):
        check_exposure(host, None)


# --- hostile input ------------------------------------------------------------------------------------------

KEYS = 200_000
HOSTILE_BODIES = {
    "nothing": b"",
    "not text": bytes(range(256)) * 100,
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"queries":' * 100_000,
    "wide": b'{"queries":[' + b"{}," * (MAX_BODY_BYTES // 3 - 10) + b"{}]}",
    "many keys": b"{" + b",".join(b'"%d":0' % i for i in range(KEYS)) + b"}",
    "endless string": b'{"queries":[{"game_idx":0,"original_note":"' + b"\\" * (MAX_BODY_BYTES - 100),
    "lone surrogate": b'{"queries":[{"game_idx":0,"original_note":"\\ud800","medical_note":"a"}]}',
    "huge number": b'{"queries":[{"game_idx":' + b"9" * 100_000 + b',"original_note":"a","medical_note":"a"}]}',
    "not a number": b'{"queries":[{"game_idx":NaN,"original_note":"a","medical_note":"a"}]}',
    "nul": b'{"queries":[{"game_idx":0,"original_note":"\\u0000","medical_note":"a"}]}\0',
    "too many": json.dumps(queries(*["a"] * 1025)).encode(),
    "too long a note": json.dumps(queries("a" * 100_001)).encode(),
}
HOSTILE_BYTES = {
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
    "endless header": b"GET /health HTTP/1.1\r\nX: " + b"a" * 1_000_000,
    "many headers": b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 100_000,
    "two lengths": b"POST /judge HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "negative length": b"POST /judge HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",
    "huge length": b"POST /judge HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\nhello",
    "bad chunk": b"POST /judge HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    "upgrade": b"GET /judge HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "odd header": b"POST /judge HTTP/1.1\r\nHost: a\r\nAuthorization: \xff\xfe\r\nContent-Length: 2\r\n\r\n[]",
}
HOSTILE_BOUND_MIB = 256
FULL_BOUND_MIB = 512


def resident_mib(pid: int, which: str = "VmRSS") -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(which)) / 1024


def test_hostile_input_is_refused_and_costs_bounded_memory(tmp_path: Path) -> None:
    """Two clients send everything at once, several times over; the peak of the whole time is what counts."""
    with start_judge_process(log_file=tmp_path / "judge.log") as judge:
        requests.post(f"{judge.url}/judge", json=queries("a"), timeout=PATIENCE_S)
        before = resident_mib(judge.pid)

        def attack() -> set[int]:
            codes = set()
            for _ in range(2):
                for body in HOSTILE_BODIES.values():
                    for path in ("/judge", "/evaluate", "/get_reward"):
                        answer = requests.post(f"{judge.url}{path}", data=body, timeout=PATIENCE_S)
                        codes.add(answer.status_code)
                for sent in HOSTILE_BYTES.values():
                    _send_raw(judge.url, sent)
            return codes

        attacks = [in_background(attack) for _ in range(2)]
        for thread, _ in attacks:
            thread.join(60)
        assert [codes[0] - {413, 422, 429} for _, codes in attacks] == [set(), set()]
        answer = requests.post(f"{judge.url}/judge", json=queries("a"), timeout=PATIENCE_S)
        assert answer.status_code == 200 and judge.running
        peak = resident_mib(judge.pid, "VmHWM")
        print(f"resident before {before:.0f} MiB, at the most {peak:.0f}, after {resident_mib(judge.pid):.0f}")
        assert peak - before < HOSTILE_BOUND_MIB
    assert "Traceback" not in judge.log_file.read_text()


def test_as_much_as_is_ever_let_in_costs_bounded_memory(tmp_path: Path) -> None:
    """Bodies of the largest size, and one character in each note that makes Python keep four bytes for every one."""
    note = "a" * 99_999 + "\U0001f600"
    body = json.dumps(queries(*[note] * 70) | {"score_key": "labels"}, ensure_ascii=False).encode()
    assert 0.8 * MAX_BODY_BYTES < len(body) < MAX_BODY_BYTES
    with sleeping(tmp_path, batch_s=0.8, grace_s=1) as judge:
        before = resident_mib(judge.pid)
        header = {TIMEOUT_HEADER: "1.5"}
        asked = [
            in_background(
                lambda: requests.post(f"{judge.url}/judge", data=body, headers=header, timeout=60).status_code
            )
            for _ in range(16)
        ]
        for thread, _ in asked:
            thread.join(60)
        peak = resident_mib(judge.pid, "VmHWM")
        print(f"resident before {before:.0f} MiB, at the most {peak:.0f}, after {resident_mib(judge.pid):.0f}")
    codes = [codes[0] for _, codes in asked]
    assert set(codes) == {200, 429} and peak - before < FULL_BOUND_MIB


def _send_raw(url: str, sent: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    with connection, contextlib.suppress(OSError):  # a server may hang up in the middle
        connection.sendall(sent)
        connection.settimeout(0.05)
        connection.recv(1000)


def test_megabytes_of_a_refused_body_keep_nobody_waiting() -> None:
    backend = Gated()
    backend.open.set()
    body = HOSTILE_BODIES["wide"]
    with served(backend) as url:
        done = threading.Event()

        def flood() -> None:
            with requests.Session() as session:
                while not done.is_set():
                    session.post(f"{url}/judge", data=body, timeout=PATIENCE_S)

        floods = [in_background(flood) for _ in range(2)]
        waits = []
        for _ in range(20):
            start = time.monotonic()
            requests.get(f"{url}/health", timeout=PATIENCE_S)
            waits.append(time.monotonic() - start)
        done.set()
        for thread, _ in floods:
            thread.join(PATIENCE_S)
    assert sorted(waits)[len(waits) // 2] < 0.1
