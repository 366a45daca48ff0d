"""The client of the judge: batches, several replicas, retries under one deadline, rows joined by key.

    label() ─► waiting queries ─► worker threads: fill a batch, ask a replica, settle each query
                     ▲                                   │ no answer, or none to be trusted
                     └────────── again, a little later ◄─┘

Never blocks an event loop and never raises for what a judge could not do: that is a label with status
``error`` and the reason. Nothing is guessed: a row that does not validate is no label, and of an answer whose
keys are not exactly those that were sent no row is believed.

Asking again is safe, because a judge answers and changes nothing; it is done only where it may help:

    no answer, a fault           another replica, or the same a little later; the second time in two halves, so
                                 that one query that upsets the judge spoils no other
    a row: the backend failed    the same, alone, twice at most; then that is it
    full (429, Retry-After)      after that while
    413, 422                     never as it is: in two halves, down to the query that is refused alone
    any other refusal            at the other replicas; when all have refused, that is it
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Query
from openrlhf_medical.judge.replicas import Lease, Replicas, Verdict, backoff_s, spread_s
from openrlhf_medical.judge.stats import ClientStats
from openrlhf_medical.judge.transport import Answer, Health, Outcome, Transport
from openrlhf_medical.judge.waiting import Batch, Pending, WaitingRoom

LONE_FAULTS = 8
"""Faulty answers to a query, the last of them to it alone, after which it is given up. With the pauses between them
that takes at least five seconds: a judge that only stumbled has got up by then, and one that this very query
brings down is not brought down for ever."""

BACKEND_TRIES = 3
"""Backends that may fail on a query before it is given up: a note that fells them would do so for ever, and each may
take minutes to load again."""

_VERDICTS = {
    Outcome.ANSWERED: Verdict.WORKS,
    Outcome.UNFIT: Verdict.WORKS,
    Outcome.FULL: Verdict.FULL,
    Outcome.FAULTY: Verdict.FAULTY,
    Outcome.UNAVAILABLE: Verdict.GONE,
    Outcome.REFUSED: Verdict.GONE,
}
_CLOSE_S = 1.0
_HEALTH_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 2.0


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
        max_requests: under way at the same time. A judge that takes 2 s for a query is kept busy, and no query
            waits for another's answer, if this is at least 2 s / ``max_wait_s``.

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
        max_requests: int = 64,
    ) -> None:
        if min(batch_size, max_requests) < 1 or timeout_s <= 0 or max_wait_s < 0:
            raise ValueError("batch_size, max_requests and timeout_s must be positive, max_wait_s not negative")
        self._replicas = Replicas(urls)
        self.timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s or (timeout_s if len(self._replicas.urls) == 1 else timeout_s / 2)
        # A key is used once, not again for a retry, and another client has others: an answer that was meant for
        # another request is known by its keys. Below 2^53, which every JSON reader gives back exactly.
        self._keys = itertools.count(random.SystemRandom().getrandbits(32) << 20)
        self._stats = ClientStats()
        self._waiting = WaitingRoom(batch_size, max_wait_s)
        self._transport = Transport(token, connections=max_requests)
        # Daemons: a judge that hangs must not keep the program from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"judge-client-{i}", daemon=True) for i in range(max_requests)
        ]
        for thread in self._threads:
            thread.start()

    async def label(self, query: Query) -> Label:
        start = time.monotonic()
        pending = Pending(query, start + self.timeout_s, Future())
        try:
            if not self._waiting.put(pending):
                return self._counted(_error("the judge client is closed"), start)
            answer = asyncio.wrap_future(pending.future)
            done, _ = await asyncio.wait({answer}, timeout=self.timeout_s)
            return self._counted(answer.result() if done else _error(self._too_late(pending)), start)
        finally:
            pending.future.cancel()  # workers pass over a query that nobody waits for any more

    def snapshot(self) -> dict[str, float]:
        """Counts since the start (ok, abstain, error, requests, retries) and, once there is one, the latency
        of the latest labels in seconds (``latency_s`` the mean, ``latency_p95_s``)."""
        return self._stats.snapshot()

    def last_words(self) -> dict[str, str]:
        """Why the latest request to each replica failed, by url; "" where it did not."""
        return self._replicas.last_words()

    def health(self) -> dict[str, Health]:
        """What each replica says now, by url; all are asked at once. Blocks, for seconds at most."""
        urls = self._replicas.urls
        with ThreadPoolExecutor(len(urls)) as pool:
            said = pool.map(lambda url: self._transport.health(url, _HEALTH_TIMEOUT_S), urls)
            return dict(zip(urls, said, strict=True))

    def wait_ready(self, deadline_s: float) -> None:
        """Waits until at least one replica is ready. Blocks.

        Raises:
            UserError: none was in time, with what each one said last; or all that are ready refuse our requests.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            health = self.health()
            if ready := [url for url, each in health.items() if each.ready]:
                self._check_welcome(ready)
                return
            if time.monotonic() > deadline:
                shown = "; ".join(f"{url}: {each.said}" for url, each in health.items())
                raise UserError(
                    f"no judge was ready within {deadline_s:g} s ({shown}); start one with "
                    "`openrlhf-medical serve-judge`, or correct judge.urls"
                )
            time.sleep(_HEALTH_POLL_S)

    def _check_welcome(self, urls: Sequence[str]) -> None:
        """GET /health needs no token: a request for no labels tells whether ours will do, before anybody plays."""
        answers = {url: self._transport.judge(url, {}, _HEALTH_TIMEOUT_S) for url in urls}
        if all(answer.outcome is Outcome.REFUSED for answer in answers.values()):
            shown = "; ".join(f"{url}: {answer.reason}" for url, answer in answers.items())
            raise UserError(f"the judge refuses our requests ({shown}); see judge.token_file and judge.urls")

    def close(self) -> None:
        """Settles what is still waiting with an error and stops the threads. May be called again."""
        for pending in self._waiting.close():
            pending.settle(_error("the judge client was closed"))
        self._replicas.close()
        end = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            # One that is inside a request ends with it; until then it is a daemon.
            thread.join(timeout=max(0.0, end - time.monotonic()))
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- worker threads -----------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._waiting.take()) is not None:
            try:
                self._ask(batch)
            except Exception as error:  # a bug here must cost these queries, not a thread
                _settle(batch.queries, f"the judge client failed with {type(error).__name__}: {error}")

    def _ask(self, batch: Batch) -> None:
        """One request, and every query of it settled or put back."""
        batch.queries = [pending for pending in batch.queries if pending.open]
        if not batch.queries:
            return  # label() tells those that are late
        # The longest: else one query at its end would cut the request short for all.
        deadline = max(pending.deadline for pending in batch.queries)
        lease = self._replicas.lease(deadline, avoid=batch.failed_at)
        if lease is None:  # closed, or all are late, which label() tells
            if time.monotonic() < deadline:
                _settle(batch.queries, "the judge client was closed")
            return
        keyed = {next(self._keys): pending for pending in batch.queries}
        answer = Answer(Outcome.FAULTY, "the judge client failed")
        try:
            answer = self._exchange(lease, keyed, deadline)
        finally:
            pause_s = None if answer.retry_after_s is None else spread_s(answer.retry_after_s)
            verdict, reason = _worth(answer, others=len(self._replicas.urls) > 1)
            self._replicas.give_back(lease, verdict, reason, pause_s)
        if answer.outcome is Outcome.ANSWERED:
            self._take_over(batch, keyed, answer, lease.url)
        else:
            self._go_on(batch, answer, lease.url)

    def _exchange(self, lease: Lease, keyed: dict[int, Pending], deadline: float) -> Answer:
        # A trial begins with a question that costs nothing: queries are not kept waiting by one that still hangs.
        if lease.trial and not (health := self._transport.health(lease.url, _HEALTH_TIMEOUT_S)).ready:
            return Answer(Outcome.UNAVAILABLE, health.said)
        self._stats.requested()
        left_s = max(0.01, min(self._attempt_timeout_s, deadline - time.monotonic()))
        return self._transport.judge(lease.url, {key: pending.query for key, pending in keyed.items()}, left_s)

    def _take_over(self, batch: Batch, keyed: dict[int, Pending], answer: Answer, url: str) -> None:
        for key, label in answer.labels.items():
            keyed[key].settle(label)
        for key, problem in answer.invalid.items():
            alone = Batch([keyed[key]], batch.attempts, batch.faulty)
            self._go_on(alone, Answer(Outcome.FAULTY, problem), url)
        for key, label in answer.failed.items():
            keyed[key].failures += 1
            if keyed[key].failures >= BACKEND_TRIES:
                keyed[key].settle(label)
            else:
                alone = Batch([keyed[key]], batch.attempts, batch.faulty)
                self._go_on(alone, Answer(Outcome.FAULTY, label.reason), url)

    def _go_on(self, batch: Batch, answer: Answer, url: str) -> None:
        """What becomes of queries that got no label: the table at the top."""
        reason, lone = f"{url}: {answer.reason}", len(batch.queries) == 1
        batch.attempts, batch.failed_at = batch.attempts + 1, url
        if answer.outcome is Outcome.UNFIT:
            if lone:
                _settle(batch.queries, reason)
            else:
                self._again(batch.halves(), reason, pause=False)
            return
        if answer.outcome is Outcome.REFUSED:
            for pending in batch.queries:
                pending.refused_by.add(url)
            refused = [pending for pending in batch.queries if len(pending.refused_by) == len(self._replicas.urls)]
            _settle(refused, reason)
            batch.queries = [pending for pending in batch.queries if pending not in refused]
        if answer.outcome is Outcome.FAULTY:
            batch.faulty += 1
            if lone and batch.faulty >= LONE_FAULTS:
                _settle(batch.queries, f"{reason} ({batch.faulty} faulty answers)")
                return
        self._again(batch.halves() if batch.faulty > 1 and not lone else [batch], reason)

    def _again(self, batches: Iterable[Batch], reason: str, *, pause: bool = True) -> None:
        for batch in batches:
            for pending in batch.queries:
                pending.reason = reason
                self._stats.retried()
            # At once at first: another replica may stand by, and one that shall be left alone for a while is.
            pause_s = backoff_s(batch.attempts - 1) if pause and batch.attempts > 1 else 0.0
            if not self._waiting.put_back(batch, time.monotonic() + pause_s):
                _settle(batch.queries, "the judge client was closed")

    def _too_late(self, pending: Pending) -> str:
        said = "; ".join(f"{url}: {words}" for url, words in self.last_words().items() if words)
        last = pending.reason or said or "no judge could be asked in time"
        return f"no label within {self.timeout_s:g} s; last, {last}"

    def _counted(self, label: Label, start: float) -> Label:
        self._stats.count(label.status, time.monotonic() - start)
        return label


def _worth(answer: Answer, *, others: bool) -> tuple[Verdict, str]:
    """What an answer says of its replica, and why. One without a single label says that it is not well, however
    quick it was: else a judge whose backend is gone would draw the queries of the ``others``."""
    useless = [*answer.invalid.values(), *(label.reason for label in answer.failed.values())]
    if others and answer.outcome is Outcome.ANSWERED and useless and not answer.labels:
        return Verdict.FAULTY, useless[0]
    return _VERDICTS[answer.outcome], answer.reason


def _settle(queries: Iterable[Pending], reason: str) -> None:
    for pending in queries:
        pending.settle(_error(reason))


def _error(reason: str) -> Label:
    return Label("error", None, reason=reason)
