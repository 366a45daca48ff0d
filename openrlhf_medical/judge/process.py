"""A judge of one's own: the server as a process on loopback, started and stopped by the program that needs it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests

logger = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "openrlhf_medical", "serve-judge")
_POLL_S = 0.05
_STOP_GRACE_S = 12.0  # more than the server itself takes to finish what it has
_WATCH_S, _RESTART_PAUSE_S = 0.5, 10.0
_LOG_TAIL_CHARS = 2000


class JudgeProcess:
    """A judge that runs until ``stop``, or until the process that started it ends.

    A context manager. ``url`` is where it answers.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, log_file: Path) -> None:
        self._process = process
        self.url = url
        self.log_file = log_file

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> int:
        """Ends this one process, by its own pid, and returns its exit code. May be called again."""
        return _end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_judge_process(
    *,
    log_file: Path,
    backend: str = "reference",
    host: str = "127.0.0.1",
    port: int = 0,
    deadline_s: float = 60.0,
    program: Sequence[str] = PROGRAM,
) -> JudgeProcess:
    """Starts ``serve-judge`` on a free port, or on ``port``, and waits until it is ready.

    The server binds port 0 itself and writes the port down, so no two can race for one. It is a session of
    its own: Ctrl-C reaches the program that started it, which may still need the judge to finish its step.

    Args:
        log_file: takes its output; made anew, folders included.
        program: the command to which the options are added; tests put another here.

    Raises:
        RuntimeError: it ended early, or was not ready in time; with the end of its log.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="judge-") as folder, log_file.open("wb") as log:
        port_file = Path(folder) / "port"
        options = ["--backend", backend, "--host", host, "--port", str(port), "--port-file", str(port_file)]
        process = subprocess.Popen(
            [*program, *options, "--exit-with-parent"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = _wait_until_ready(process, host, port_file, time.monotonic() + deadline_s)
        except BaseException as error:
            _end(process)
            if isinstance(error, _NotReady):
                raise RuntimeError(f"the judge {error} (log {log_file}): {_tail(log_file)}") from None
            raise
    return JudgeProcess(process, url, log_file)


@contextlib.contextmanager
def kept_running(log_file: Path, **options: Any) -> Iterator[str]:
    """A judge of one's own that is started again, at the same address, when it ends before its time. Gives its url.

    ``options`` are those of ``start_judge_process``, which says what is raised when the first start fails. A later
    one logs to ``<name>-2.log`` and so on, so that the last words of the one before are kept.
    """
    judge = start_judge_process(log_file=log_file, **options)
    port, done = urlsplit(judge.url).port, threading.Event()

    def watch() -> None:
        nonlocal judge
        for count in itertools.count(2):
            while judge.running:
                if done.wait(_WATCH_S):
                    return
            logger.warning("the judge ended (see %s): starting it again", judge.log_file)
            try:
                judge = start_judge_process(log_file=log_file.with_stem(f"{log_file.stem}-{count}"),
                                            **{**options, "port": port})  # fmt: skip
            except (RuntimeError, OSError) as error:
                logger.error("the judge could not be started again: %s", error)
                if done.wait(_RESTART_PAUSE_S):
                    return

    thread = threading.Thread(target=watch, name="watch-judge", daemon=True)
    thread.start()
    try:
        yield judge.url
    finally:
        done.set()
        thread.join()
        judge.stop()


class _NotReady(Exception):
    pass


def _wait_until_ready(process: subprocess.Popen[bytes], host: str, port_file: Path, deadline: float) -> str:
    with requests.Session() as session:
        session.trust_env = False  # a proxy has no business on loopback
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise _NotReady(f"ended with exit code {process.returncode} before it was ready")
            if port_file.exists():
                url = f"http://{host}:{int(port_file.read_text(encoding='utf-8'))}"
                try:
                    if session.get(f"{url}/health", timeout=2).status_code == 200:
                        return url
                except requests.RequestException:
                    pass
            time.sleep(_POLL_S)
    raise _NotReady("was not ready in time")


def _end(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _tail(log_file: Path) -> str:
    return log_file.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARS:].strip() or "(empty)"
