"""Waiting for workers, and the end of a Ray whose workers do not end. No Ray."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from openrlhf_medical import cluster
from openrlhf_medical.errors import RunError, StuckError, WorkerDied


class Dead(ActorDiedError):
    def __str__(self) -> str:
        return (
            "The actor died unexpectedly.\n\tclass_name: X\n\tpid: 41\n\tip: 10.0.0.7\n"
            "The actor is dead because its worker process has died. Out of memory."
        )


FAILED = RayTaskError("update", "RuntimeError: connection closed by peer", RuntimeError("closed"))


class Answer:
    """A reference that is ready after ``wait_s``, with a value or an error."""

    def __init__(self, value: Any, wait_s: float = 0.0) -> None:
        self.value, self.ready_at = value, time.monotonic() + wait_s


@pytest.fixture(autouse=True)
def scripted_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(pending: list[Answer], num_returns: int, timeout: float) -> tuple[list[Answer], list[Answer]]:
        deadline = time.monotonic() + timeout
        while True:
            ready = [one for one in pending if one.ready_at <= time.monotonic()][:num_returns]
            if ready or time.monotonic() >= deadline:
                return ready, [one for one in pending if one not in ready]
            time.sleep(0.01)

    def get(reference: Answer, timeout: float) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    monkeypatch.setattr(cluster.ray, "wait", wait)
    monkeypatch.setattr(cluster.ray, "get", get)


def test_results_come_by_name_in_the_order_that_was_asked() -> None:
    found = cluster.gather({"a": Answer(1, 0.05), "b": Answer(2)}, 5, "asking")
    assert list(found.items()) == [("a", 1), ("b", 2)]


def test_who_does_not_answer_is_named_with_the_phase() -> None:
    with pytest.raises(StuckError, match=r"^update: no answer from b rank 1, c within 0\.2 s$"):
        cluster.gather({"a": Answer(1), "c": Answer(1, 60), "b rank 1": Answer(1, 60)}, 0.2, "update")


def test_who_died_is_named_with_the_reason() -> None:
    with pytest.raises(WorkerDied, match=r"^update: rank 1 \(node 10\.0\.0\.7, pid 41\) died: Out of memory$") as error:
        cluster.gather({"rank 0": Answer(1, 60), "rank 1": Answer(Dead())}, 5, "update")
    assert error.value.names == ("rank 1",) and isinstance(error.value, RunError)


@pytest.mark.parametrize("later_s", [0.0, 0.3])
def test_a_death_is_told_and_not_the_errors_that_it_causes(later_s: float) -> None:
    """Rank 0 loses its connection to rank 1, and says so before rank 1 is known to be dead."""
    with pytest.raises(WorkerDied, match=r"rank 1 .*died"):
        cluster.gather({"rank 0": Answer(FAILED), "rank 1": Answer(Dead(), later_s)}, 5, "update")


def test_an_error_of_its_own_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CAUSE_S", 0.1)
    with pytest.raises(RayTaskError):
        cluster.gather({"rank 0": Answer(FAILED), "rank 1": Answer(1, 60), "rank 2": Answer(FAILED)}, 5, "update")


def test_work_of_others_gets_a_deadline() -> None:
    assert cluster.within(5, "adding", lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        cluster.within(5, "dividing", lambda: 1 / 0)
    with pytest.raises(StuckError, match=r"^waiting: no answer within 0\.1 s$"):
        cluster.within(0.1, "waiting", lambda: threading.Event().wait(30))

    def die() -> None:
        raise Dead()

    with pytest.raises(WorkerDied, match="starting the first PolicyWorker: it died: Out of memory"):
        cluster.within(5, "starting the first PolicyWorker", die)


def test_ray_ends_in_bounded_time_and_takes_stopped_processes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped worker hears no SIGTERM, and Ray's own end may hang; what is not Ray's is left alone."""
    monkeypatch.setattr(cluster, "SHUTDOWN_S", 0.2)
    monkeypatch.setattr(cluster, "LAST_MOMENTS_S", 1.0)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: threading.Event().wait(60))
    sleep = "import time; print('up', flush=True); time.sleep(60)"
    nested = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); " + sleep
    daemon = subprocess.Popen([sys.executable, "-c", nested, "/lib/ray/core/raylet"], stdout=subprocess.PIPE)
    judge = subprocess.Popen([sys.executable, "-c", sleep], stdout=subprocess.PIPE)
    try:
        for process, lines in ((daemon, 2), (judge, 1)):
            assert process.stdout is not None
            assert all(process.stdout.readline() == b"up\n" for _ in range(lines))
        [worker] = psutil.Process(daemon.pid).children()
        worker.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        cluster.shut_down()
        assert time.monotonic() - began < 15
        assert not cluster._runs(worker) and not psutil.pid_exists(daemon.pid) and judge.poll() is None
    finally:
        for process in (daemon, judge):
            process.kill()
            process.communicate()


def test_no_call_of_ours_waits_for_ray_without_a_deadline() -> None:
    """``ray.get`` and ``ray.wait`` of the whole package have one; everything else goes through ``gather``."""
    waits = [
        (file.name, call)
        for file in Path(cluster.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("ray.get", "ray.wait")
    ]
    assert len(waits) >= 4
    without = [(name, call.lineno) for name, call in waits if "timeout" not in {word.arg for word in call.keywords}]
    assert not without, without


class TestRayThatComesUpMeanwhile:
    """``coming_up``: Ray is started in a thread while the program imports."""

    @pytest.fixture
    def events(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []
        up = threading.Event()

        def connect(gpus: int) -> None:
            if not up.is_set():
                time.sleep(0.1)
                up.set()
                seen.append(f"up with {gpus}")

        def shut_down() -> None:
            up.clear()
            seen.append("down")

        monkeypatch.setattr(cluster, "connect", connect)
        monkeypatch.setattr(cluster, "shut_down", shut_down)
        monkeypatch.setattr(cluster.ray, "is_initialized", up.is_set)
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": 4, "CPU": 4})
        return seen

    def test_the_session_takes_it_over_and_it_ends_once(self, events: list[str]) -> None:
        with cluster.coming_up(3):
            events.append("imported")
            with cluster.session(3):
                events.append("played")
        assert events == ["imported", "up with 3", "played", "down"]

    def test_without_a_session_it_ends_all_the_same(self, events: list[str]) -> None:
        with pytest.raises(RunError), cluster.coming_up(3):
            raise RunError("a mistake of the user")
        assert events == ["up with 3", "down"]

    def test_its_error_is_told_by_the_session(self, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(gpus: int) -> None:
            raise ConnectionError("no such cluster")

        monkeypatch.setattr(cluster, "connect", fails)
        with pytest.raises(ConnectionError, match="no such cluster"), cluster.coming_up(3), cluster.session(3):
            pass
