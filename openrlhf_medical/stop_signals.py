"""SIGTERM, Ctrl-C and SIGUSR1 during a run: save a state that it goes on from, then end.

starting up ───────────► ends at once: nothing is lost
games ─────────────────► they are stopped; the weights are at a step's end already
learning, sync, saving ► goes on to the step's end
a second Ctrl-C ───────► ends at once, whatever is under way
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from openrlhf_medical.errors import Interrupted, RunError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Batch systems send SIGTERM before they kill, and SIGUSR1 (``sbatch --signal``) before the time is over."""


class StopSignals:
    """A context manager that listens. Without being entered it hears nothing, as in tests."""

    def __init__(self, last_words: Callable[[], None] = lambda: None) -> None:
        """``last_words``: called before a second Ctrl-C ends the program."""
        self.requested: signal.Signals | None = None
        self.last_words = last_words
        self._deferred = False
        self._stop: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def listen(self) -> None:
        """Again after ``ray.init``, which sets a handler of its own for SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self._heard)
                self._before.setdefault(number, before)

    def defer(self) -> None:
        """From now on a signal ends the run at the next end of a step, and in games."""
        self._deferred = True

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Around work that may be given up, as the weights are at a step's end: a signal calls ``stop``.

        Raises:
            Interrupted: there was a signal, be it earlier, or in the last moment.
        """
        self._stop = stop
        try:
            self._check()
            yield
        except (asyncio.CancelledError, RunError):  # how work ends that was stopped
            self._check()
            raise
        finally:
            self._stop = None
        self._check()

    def _check(self) -> None:
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        # Whatever was under way may hold locks: nothing here may wait for one.
        if self.requested is not None:
            if number == signal.SIGINT:
                self.last_words()
                os._exit(128 + number)  # threads that wait for workers cannot be told to end
            return
        self.requested = signal.Signals(number)
        if not self._deferred:
            raise Interrupted(self.requested)
        with contextlib.suppress(OSError):  # nobody may be reading any more
            os.write(2, f"\n{self.requested.name}: the run ends as soon as its state is saved; Ctrl-C (once more) "
                        "ends it at once\n".encode())  # fmt: skip
        if self._stop is not None:
            self._stop()
