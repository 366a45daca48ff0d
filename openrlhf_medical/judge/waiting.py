"""Where queries wait for a worker: batches form here, and those to be asked again bide their time."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from openrlhf_medical.game.players import Label, Query


@dataclass(slots=True, eq=False)
class Pending:
    """A query on its way. ``deadline`` is of ``time.monotonic``; ``reason`` is why the latest attempt brought
    nothing; ``refused_by`` are the replicas that want nothing of what we send; ``failures`` counts the backends that
    failed on it."""

    query: Query
    deadline: float
    future: Future[Label]
    reason: str = ""
    refused_by: set[str] = field(default_factory=set)
    failures: int = 0

    def settle(self, label: Label) -> None:
        """The first word counts; nobody may be waiting any more."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(label)

    @property
    def open(self) -> bool:
        return not self.future.done() and time.monotonic() < self.deadline


@dataclass(slots=True, eq=False)
class Batch:
    """Queries that share a request. One that is asked again stays by itself: what spoils it spoils no other.

    ``attempts``: requests so far that brought nothing, of which ``faulty`` were answered, but not by what can
    be trusted; ``failed_at``: the replica of the latest.
    """

    queries: list[Pending]
    attempts: int = 0
    faulty: int = 0
    failed_at: str | None = None

    def halves(self) -> list[Batch]:
        """Two batches, as often asked as this one; only for more than one query."""
        middle = len(self.queries) // 2
        return [
            Batch(part, self.attempts, self.faulty, self.failed_at)
            for part in (self.queries[:middle], self.queries[middle:])
        ]


class WaitingRoom:
    """Thread-safe. ``take`` gives a batch that is due again, or is full, or whose first query waited long enough."""

    def __init__(self, batch_size: int, max_wait_s: float) -> None:
        self._batch_size = batch_size
        self._max_wait_s = max_wait_s
        self._turn = threading.Lock()  # one taker at a time looks and waits: a new query wakes one thread, not all
        self._changed = threading.Condition()
        self._fresh: deque[tuple[float, Pending]] = deque()  # (since when, query)
        self._again: list[tuple[float, int, Batch]] = []  # a heap: (not before, tie-break, batch)
        self._ties = itertools.count()
        self._closed = False

    def put(self, pending: Pending) -> bool:
        """A query that is new. False once closed."""
        with self._changed:
            if not self._closed:
                self._fresh.append((time.monotonic(), pending))
                self._changed.notify()
            return not self._closed

    def put_back(self, batch: Batch, not_before: float) -> bool:
        """A batch that is to be asked again. False once closed."""
        with self._changed:
            if not self._closed:
                heapq.heappush(self._again, (not_before, next(self._ties), batch))
                self._changed.notify()
            return not self._closed

    def take(self) -> Batch | None:
        """Blocks until there is a batch; None once closed."""
        with self._turn, self._changed:
            while not self._closed:
                now = time.monotonic()
                if self._again and self._again[0][0] <= now:
                    return heapq.heappop(self._again)[2]
                due = self._fresh[0][0] + self._max_wait_s if self._fresh else None
                if due is not None and (len(self._fresh) >= self._batch_size or due <= now):
                    size = min(self._batch_size, len(self._fresh))
                    return Batch([self._fresh.popleft()[1] for _ in range(size)])
                times = [due] if due is not None else []
                times += [self._again[0][0]] if self._again else []
                self._changed.wait(min(times) - now if times else None)
            return None

    def close(self) -> list[Pending]:
        """What was still waiting; ``take`` and ``put`` give up from now on."""
        with self._changed:
            self._closed = True
            left = [pending for _, pending in self._fresh]
            left += [pending for _, _, batch in self._again for pending in batch.queries]
            self._fresh.clear()
            self._again.clear()
            self._changed.notify_all()
            return left
