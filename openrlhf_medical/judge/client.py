"""The client of the judge: batches, several replicas, retries under one deadline, rows joined by key.

    label() ─► waiting queries ─► worker threads: fill a batch, ask a replica, settle each query
                     ▲                                   │ not answered, or not by a row to be trusted
                     └────────── again, a little later ◄─┘

Never blocks an event loop and never raises for what a judge could not do: that is a label with status
``error`` and the reason. Nothing is guessed: a row that does not validate is no label.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Query
from openrlhf_medical.judge.replicas import Replicas, backoff_s
from openrlhf_medical.judge.stats import ClientStats
from openrlhf_medical.judge.transport import Answer, Outcome, Transport
from openrlhf_medical.judge.waiting import Pending, WaitingRoom

_CLOSE_S = 1.0
_HEALTH_POLL_S = 0.1


class JudgeClient:
    """Implements ``game.players.Judge`` over HTTP. A context manager; one instance serves any event loop.

    Args:
        urls: replicas that answer alike, ``http://HOST:PORT``.
        batch_size: queries in one request, at most.
        max_wait_s: how long a query waits for others to share its request.
        timeout_s: one deadline for a query, all retries included.
        attempt_timeout_s: for one request; by default ``timeout_s`` with one replica and half of it with
            several, so that one that hangs leaves time for another.
        token: sent as a bearer token.
        workers: requests under way at the same time.

    Raises:
        UserError: no url, or one that is no address.
        ValueError: a size or time that is not positive.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        batch_size: int = 64,
        max_wait_s: float = 0.05,
        timeout_s: float = 60.0,
        attempt_timeout_s: float | None = None,
        token: str | None = None,
        workers: int = 8,
    ) -> None:
        if min(batch_size, workers) < 1 or timeout_s <= 0 or max_wait_s < 0:
            raise ValueError("batch_size, workers and timeout_s must be positive, max_wait_s not negative")
        self._replicas = Replicas(urls)
        self.timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s or (timeout_s if len(self._replicas.urls) == 1 else timeout_s / 2)
        self._token = token
        self._wire_ids = itertools.count()
        self._stats = ClientStats()
        self._waiting = WaitingRoom(batch_size, max_wait_s)
        # Daemons: a judge that hangs must not keep the program from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"judge-client-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    async def label(self, query: Query) -> Label:
        start = time.monotonic()
        pending = Pending(query, next(self._wire_ids), start + self.timeout_s, Future())
        try:
            if not self._waiting.put(pending):
                return self._failed(pending, start, "the judge client is closed")
            answer = asyncio.wrap_future(pending.future)
            done, _ = await asyncio.wait({answer}, timeout=self.timeout_s)
            if not done:
                return self._failed(pending, start, self._too_late(pending))
            label = answer.result()
            self._stats.count(label.status, time.monotonic() - start)
            return label
        finally:
            pending.future.cancel()  # workers pass over a query that nobody waits for any more

    def snapshot(self) -> dict[str, float]:
        """Counts since the start (ok, abstain, error, requests, retries) and, once there is one, the latency
        of the latest labels in seconds (``latency_s`` the mean, ``latency_p95_s``)."""
        return self._stats.snapshot()

    def wait_ready(self, deadline_s: float) -> None:
        """Waits until at least one replica is ready. Blocks.

        Raises:
            UserError: none was in time; with what each one said last.
        """
        deadline = time.monotonic() + deadline_s
        with Transport(self._token) as transport:
            while True:
                said = {}
                for url in self._replicas.urls:
                    said[url] = transport.health(url, min(2.0, deadline_s))
                    if said[url] is None:
                        return
                if time.monotonic() > deadline:
                    shown = "; ".join(f"{url}: {reason}" for url, reason in said.items())
                    raise UserError(
                        f"no judge was ready within {deadline_s:g} s ({shown}); start one with "
                        "`openrlhf-medical serve-judge`, or correct judge.urls"
                    )
                time.sleep(_HEALTH_POLL_S)

    def close(self) -> None:
        """Settles what is still waiting with an error and stops the threads. May be called again."""
        for pending in self._waiting.close():
            pending.settle(_error("the judge client was closed"))
        end = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            # One that is inside a request ends with it; until then it is a daemon.
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- worker threads -----------------------------------------------------------------------------

    def _work(self) -> None:
        with Transport(self._token) as transport:
            while (batch := self._waiting.take()) is not None:
                try:
                    self._ask(transport, batch)
                except Exception as error:  # a bug here must cost these queries, not a thread
                    for pending in batch:
                        pending.settle(_error(f"the judge client failed with {type(error).__name__}: {error}"))

    def _ask(self, transport: Transport, batch: list[Pending]) -> None:
        """One request, and every query of it settled or put back."""
        batch = [pending for pending in batch if not self._expired(pending)]
        if not batch:
            return
        url, rest_s = self._replicas.take()
        if url is None:
            self._again(batch, None, rest_s)
            return
        # The longest: else one query at its end would cut the request short for all. It is given up by label().
        left_s = max(pending.deadline for pending in batch) - time.monotonic()
        self._stats.requested()
        answer = transport.judge(url, batch, max(0.01, min(self._attempt_timeout_s, left_s)))
        if answer.outcome is Outcome.FAILED:
            self._replicas.failed(url, answer.retry_after_s)
            # Where another replica stands by it is asked at once.
            self._again(batch, f"{url}: {answer.reason}", 0.0)
            return
        self._replicas.answered(url)
        if answer.outcome is Outcome.REFUSED:
            self._refused(transport, batch, url, answer)
            return
        for pending in batch:
            if (label := answer.labels.get(pending.wire_id)) is not None:
                pending.settle(label)
            elif (invalid := answer.invalid.get(pending.wire_id)) is not None:
                pending.settle(_error(f"{url}: {invalid}"))
            else:
                self._again([pending], f"{url}: {answer.problems[pending.wire_id]}", backoff_s(pending.attempts + 1))

    def _refused(self, transport: Transport, batch: list[Pending], url: str, answer: Answer) -> None:
        """A 4xx is never retried as it is. Where the body was the trouble, one query may have spoilt it for
        the others: each half is asked on its own, down to the one that is refused alone."""
        if answer.about_body and len(batch) > 1:
            middle = len(batch) // 2
            self._ask(transport, batch[:middle])
            self._ask(transport, batch[middle:])
            return
        for pending in batch:
            pending.settle(_error(f"{url}: {answer.reason}"))

    def _again(self, batch: Sequence[Pending], reason: str | None, pause_s: float) -> None:
        """Puts queries back. Without a reason nobody was asked: no retry is counted."""
        for pending in batch:
            if reason is not None:
                pending.attempts += 1
                pending.reason = reason
                self._stats.retried()
            if not self._waiting.put(pending, min(time.monotonic() + pause_s, pending.deadline)):
                pending.settle(_error("the judge client was closed"))

    def _expired(self, pending: Pending) -> bool:
        if pending.future.cancelled():
            return True
        if time.monotonic() >= pending.deadline:
            pending.settle(_error(self._too_late(pending)))
            return True
        return False

    def _too_late(self, pending: Pending) -> str:
        last = pending.reason or "no judge could be asked in time"
        return f"no label within {self.timeout_s:g} s; last, {last}"

    def _failed(self, pending: Pending, start: float, reason: str) -> Label:
        self._stats.count("error", time.monotonic() - start)
        return _error(reason)


def _error(reason: str) -> Label:
    return Label("error", None, reason=reason)
