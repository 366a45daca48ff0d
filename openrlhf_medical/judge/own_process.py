"""A backend in a process of its own, for one that is Python itself (``own_process = True`` on its class).

In a thread it would share the interpreter with the event loop: refusals would be late, and what they cost
would be taken from judging. It can also be ended, whatever it is at.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from openrlhf_medical.judge.backends import Backend
from openrlhf_medical.judge.discretion import Discreet, shown
from openrlhf_medical.judge.findings import BlindPair, Finding

_JOIN_S = 2.0
_DIED = "the process of the backend ended"


class BackendDied(Discreet):
    """The process ended; the next call starts it anew."""


class BackendFailed(Discreet):
    """The backend raised, in its process."""


class OwnProcess:
    """A ``Backend`` around one that can be pickled and is not loaded yet.

    Where the process dies the call under way raises, and the next one starts and loads it anew.
    """

    def __init__(self, backend: Backend) -> None:
        self.model_name = backend.model_name
        self._backend = backend
        self._process: BaseProcess | None = None
        self._closed = False

    def load(self) -> None:
        """Raises BackendFailed or BackendDied."""
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._backend), name="judge-backend", daemon=True)
        self._process.start()
        theirs.close()
        if self._closed:
            self._process.kill()
        self._answer()

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        """Raises BackendFailed or BackendDied."""
        if self._closed:
            raise BackendDied(_DIED)
        if self._process is None:
            self.load()
        try:
            self._connection.send(list(pairs))
        except OSError:
            self._end()
            raise BackendDied(_DIED) from None
        return self._answer()

    def close(self) -> None:
        """Ends the process at once; from any thread, and a call that is under way then raises BackendDied."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()
            process.join(_JOIN_S)

    def _answer(self) -> list[Finding]:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._end()
            raise BackendDied(_DIED) from None
        if isinstance(answer, str):
            raise BackendFailed(answer)
        return list(answer)

    def _end(self) -> None:
        self._connection.close()
        if self._process is not None and not self._closed:
            self._process.kill()
            self._process.join(_JOIN_S)
            self._process = None


def _work(connection: Connection, backend: Backend) -> None:
    """The process: loads, then answers each list of pairs until the other end is closed.

    A str for an answer tells a failure, without the message of the exception, which may quote a note.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)  # meant for the server, which finishes what it has
    with connection, contextlib.suppress(EOFError, OSError):
        try:
            backend.load()
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        connection.send([])
        while True:
            pairs = connection.recv()
            try:
                connection.send(backend.judge(pairs))
            except Exception as error:
                connection.send(shown(error, whole=False))
