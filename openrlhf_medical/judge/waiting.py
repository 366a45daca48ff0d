"""Where queries wait for a worker: batches form here, and retries bide their time."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from openrlhf_medical.game.players import Label, Query


@dataclass(slots=True)
class Pending:
    """A query on its way. ``deadline`` and other times are of ``time.monotonic``.

    ``wire_id`` is unique within the client, whatever game_idx the caller uses; ``reason`` is why the latest
    attempt brought nothing.
    """

    query: Query
    wire_id: int
    deadline: float
    future: Future[Label]
    attempts: int = 0
    reason: str = ""

    def settle(self, label: Label) -> None:
        """The first word counts; nobody may be waiting any more."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(label)


class WaitingRoom:
    """Thread-safe. ``take`` gives a batch that is full, or whose first query has waited long enough."""

    def __init__(self, batch_size: int, max_wait_s: float) -> None:
        self._batch_size = batch_size
        self._max_wait_s = max_wait_s
        self._changed = threading.Condition()
        self._ready: deque[tuple[float, Pending]] = deque()  # (since when, query)
        self._later: list[tuple[float, int, Pending]] = []  # a heap: (not before, tie-break, query)
        self._ties = itertools.count()
        self._closed = False

    def put(self, pending: Pending, not_before: float = 0.0) -> bool:
        """False once closed."""
        with self._changed:
            if self._closed:
                return False
            now = time.monotonic()
            if not_before <= now:
                self._ready.append((now, pending))
            else:
                heapq.heappush(self._later, (not_before, next(self._ties), pending))
            # One waiter is enough for most; but the one that is woken may be waiting for a batch to fill
            # while another sleeps until a later time, so all look again.
            self._changed.notify_all()
            return True

    def take(self) -> list[Pending] | None:
        """Blocks until there is a batch; None once closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._ready.append((now, heapq.heappop(self._later)[2]))
                wait_s = self._later[0][0] - now if self._later else None
                if self._ready:
                    due_s = self._ready[0][0] + self._max_wait_s - now
                    if len(self._ready) >= self._batch_size or due_s <= 0:
                        size = min(self._batch_size, len(self._ready))
                        return [self._ready.popleft()[1] for _ in range(size)]
                    wait_s = due_s if wait_s is None else min(wait_s, due_s)
                self._changed.wait(wait_s)
            return None

    def close(self) -> list[Pending]:
        """What was still waiting; ``take`` and ``put`` give up from now on."""
        with self._changed:
            self._closed = True
            left = [pending for _, pending in self._ready] + [pending for _, _, pending in self._later]
            self._ready.clear()
            self._later.clear()
            self._changed.notify_all()
            return left
