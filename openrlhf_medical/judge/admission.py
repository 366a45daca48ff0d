"""The bounded queue between the event loop and the judging thread: who is let in, and what is judged next.

put (loop) ─► waiting jobs, first come first served ─► take (judging thread): one batch of many jobs
withdraw (loop): its time is over, or its client is gone ─► what was not taken yet never is
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from openrlhf_medical.judge.schema import JudgeQuery, LabelRow

_NEWEST = 0.3  # weight of the latest batch in the mean of their seconds
_LONGEST_RETRY_S = 30


class Busy(Exception):
    """There is no room for these queries now, or they could not be judged in their time."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many queries are waiting")
        self.retry_after_s = retry_after_s


class Stopping(Exception):
    """The server takes nothing more."""


class Job:
    """The queries of one request. ``deadline`` is of ``time.monotonic``. Made on the event loop.

    ``rows[i]`` answers ``queries[i]``, None until it is judged; ``finished`` is done once all are, or none
    will come any more.
    """

    __slots__ = ("deadline", "finished", "queries", "rows", "since", "taken", "unanswered")

    def __init__(self, queries: Sequence[JudgeQuery], deadline: float) -> None:
        self.queries = queries
        self.deadline = deadline
        self.since = time.monotonic()
        self.rows: list[LabelRow | None] = [None] * len(queries)
        self.taken = 0
        self.unanswered = len(queries)
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not queries:
            self.finish()

    def finish(self) -> None:
        """On the event loop. May be called again."""
        if not self.finished.done():
            self.finished.set_result(None)


class Piece(NamedTuple):
    """``queries[start:stop]`` of a job: its share of a batch."""

    job: Job
    start: int
    stop: int

    @property
    def queries(self) -> Sequence[JudgeQuery]:
        return self.job.queries[self.start : self.stop]


class Queue:
    """Bounded by ``max_queue`` queries. ``take`` and ``judged`` are for the judging thread."""

    def __init__(self, max_queue: int, max_batch: int) -> None:
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._waiting = 0
        self._batch_s = 0.0
        self._busy_since: float | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Queries that no backend has seen yet."""
        return self._waiting

    @property
    def busy_s(self) -> float:
        """For how long the backend has been on its batch; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def check_room(self, deadline: float, queries: int = 1) -> None:
        """Raises Busy or Stopping where ``queries`` more would not be taken.

        Busy also where they would wait for longer than they have: a queue of requests that are given up just
        as their turn comes would keep the backend at work for nobody. An empty queue takes any request.
        """
        with self._changed:
            self._check_room(deadline, queries)

    def put(self, job: Job) -> None:
        """Raises Busy or Stopping."""
        with self._changed:
            self._check_room(job.deadline, len(job.queries))
            if job.queries:
                self._jobs.append(job)
                self._waiting += len(job.queries)
                self._changed.notify()

    def withdraw(self, job: Job) -> int:
        """The number of its queries that now never reach the backend. May be called for any job."""
        with self._changed:
            left = len(job.queries) - job.taken
            if left:
                self._jobs.remove(job)
                self._waiting -= left
                job.taken = len(job.queries)
            return left

    def take(self) -> list[Piece]:
        """Waits for queries; at most ``max_batch`` of them. Empty once closed and nothing is left."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            pieces = self._next_batch()
            if pieces:
                self._busy_since = time.monotonic()
            return pieces

    def judged(self) -> None:
        """The batch that was taken is done."""
        with self._changed:
            seconds = self.busy_s
            self._batch_s += (seconds - self._batch_s) * (_NEWEST if self._batch_s else 1.0)
            self._busy_since = None

    def close(self) -> None:
        """No more is let in; what waits is still taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next_batch(self) -> list[Piece]:
        pieces: list[Piece] = []
        room = self._max_batch
        while room and self._jobs:
            job = self._jobs[0]
            stop = min(len(job.queries), job.taken + room)
            pieces.append(Piece(job, job.taken, stop))
            room -= stop - job.taken
            self._waiting -= stop - job.taken
            job.taken = stop
            if stop == len(job.queries):
                self._jobs.popleft()
        return pieces

    def _check_room(self, deadline: float, queries: int) -> None:
        if self._closed:
            raise Stopping
        after = self._waiting + queries
        batches = math.ceil(after / self._max_batch) + (self._busy_since is not None)
        batch_s = max(self._batch_s, self.busy_s)  # one that hangs tells more than those before it
        in_time = time.monotonic() + batches * batch_s <= deadline
        if self._waiting and (after > self._max_queue or not in_time):
            raise Busy(min(_LONGEST_RETRY_S, max(1, math.ceil(batch_s))))
