"""The backend and the one thread that it works on.

Queries of several requests share a batch. A request gets its rows when all are there, when its time is over
or when the server stops; what has no row by then is a row with status ``error``: nothing is made up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from openrlhf_medical.judge.admission import Job, Piece, Queue
from openrlhf_medical.judge.backends import Backend
from openrlhf_medical.judge.discretion import shown, why_not_loaded
from openrlhf_medical.judge.findings import BlindPair, Finding, failed, row_of
from openrlhf_medical.judge.limits import Limits
from openrlhf_medical.judge.metrics import ServerMetrics
from openrlhf_medical.judge.schema import EXPIRED, STOPPED, JudgeQuery, LabelRow

logger = logging.getLogger(__name__)

_FAILING_AFTER = 3  # batches in a row that brought nothing
_DOUBT_S = 30.0  # after which a backend that failed may be tried again
_GIVEN_UP_AFTER = 2  # pieces of one failed batch that fail on their own too


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Judging:
    """Takes queries on the event loop, judges them on a thread of its own."""

    def __init__(self, backend: Backend, metrics: ServerMetrics, limits: Limits, *, log_text: bool = False) -> None:
        self.ready = False
        self.failure: str | None = None
        self._backend = backend
        self._metrics = metrics
        self._limits = limits
        self._log_text = log_text
        self.queue = Queue(limits.max_queue, limits.max_batch)
        self._open: set[Job] = set()
        self._stopping = False
        self._failed_batches, self._failed_at = 0, 0.0
        # A daemon: a backend that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="judging", daemon=True)
        metrics.waiting.set_function(lambda: self.queue.waiting)

    # --- on the event loop --------------------------------------------------------------------------

    def start(self, on_loaded: Callable[[], None]) -> None:
        """Loads the backend, then judges. ``on_loaded`` is called on this loop, ``ready`` or ``failure`` being set."""
        self._loop = asyncio.get_running_loop()
        self._on_loaded = on_loaded
        self._thread.start()

    def unavailable(self) -> str | None:
        """Why no query can be taken at all, if so."""
        if self._stopping:
            return "the judge is stopping"
        return None if self.ready else self.failure or "the backend is loading"

    def trouble(self) -> str | None:
        """``unavailable``, or why queries that are taken come to nothing."""
        if reason := self.unavailable():
            return reason
        if (busy_s := self.queue.busy_s) > self._limits.request_timeout_s:
            return f"the backend has been at work on one batch for {busy_s:.0f} s"
        if self._failed_batches >= _FAILING_AFTER and time.monotonic() - self._failed_at < _DOUBT_S:
            return f"the backend failed {self._failed_batches} times in a row"
        return None

    async def rows(self, queries: Sequence[JudgeQuery], deadline: float, gone: asyncio.Future[None]) -> list[LabelRow]:
        """One row for each query, in their order; status ``error`` for what was not judged by ``deadline``.

        Args:
            deadline: of ``time.monotonic``.
            gone: done once the client is gone.

        Raises:
            Busy, Stopping: nothing was taken.
            ClientGone: what had not reached the backend never will.
        """
        job = Job(queries, deadline)
        self.queue.put(job)
        self._open.add(job)
        self._metrics.in_flight.inc(len(queries))
        left_s = deadline - time.monotonic()
        try:
            await asyncio.wait({job.finished, gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(job)
            self._metrics.in_flight.dec(len(queries))
            spared = self.queue.withdraw(job)
        if gone.done() and not job.finished.done():
            self._metrics.cancelled.inc(spared)
            raise ClientGone
        return self._answered(job)

    def stop(self) -> None:
        """Takes nothing more; after the grace time what is still open is answered as far as it is judged."""
        self._stopping = True
        self.queue.close()
        asyncio.get_running_loop().call_later(self._limits.grace_s, self._finish, list(self._open))

    def close(self, wait_s: float) -> bool:
        """Whether the thread has ended, in time; a backend that frees something (``close``) is told to."""
        self.queue.close()
        if (close := getattr(self._backend, "close", None)) is not None:
            try:
                close()
            except Exception as error:
                logger.warning("the backend cannot be closed: %s", shown(error, whole=self._log_text))
        if self._thread.ident is None:
            return True
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _answered(self, job: Job) -> list[LabelRow]:
        if self._stopping:
            missing = failed("the judge was stopped before this was judged", STOPPED)
        else:
            missing = failed(f"not judged within {job.deadline - job.since:.3g} s", EXPIRED)
        rows = [row or row_of(query, missing) for query, row in zip(job.queries, list(job.rows), strict=True)]
        if missing.kind == EXPIRED:
            self._metrics.expired.inc(sum(row.kind == EXPIRED for row in rows))
        self._metrics.labelled(row.status for row in rows)
        return rows

    def _loaded(self, failure: str | None) -> None:
        self.failure = failure
        self.ready = failure is None
        self._metrics.ready.set(self.ready)
        self._on_loaded()

    @staticmethod
    def _finish(jobs: Iterable[Job]) -> None:
        for job in jobs:
            job.finish()

    # --- on the judging thread ----------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._backend.load()
        except BaseException as error:  # whatever a model loader may raise; it must be told
            failure = why_not_loaded(error)
            logger.error("the backend cannot be loaded: %s", failure)
            self._on_loop(self._loaded, failure)
            return
        self._on_loop(self._loaded, None)
        while pieces := self.queue.take():
            start = time.monotonic()
            try:
                self._judge_batch(pieces)
            finally:
                self.queue.judged()
            self._metrics.batch(sum(len(piece.queries) for piece in pieces), time.monotonic() - start)
            self._metrics.waited(start - piece.job.since for piece in pieces if piece.start == 0)

    def _judge_batch(self, pieces: list[Piece]) -> None:
        """One call of the backend for all. Where it fails each request is tried on its own, so that a note
        on which the backend fails costs nobody else a label; a backend that fails on all is not asked again
        and again."""
        findings = self._ask([query for piece in pieces for query in piece.queries])
        if findings is not None:
            self._count(all(finding.status == "error" for finding in findings))
            rest = iter(findings)
            for piece in pieces:
                self._settle(piece, [next(rest) for _ in piece.queries])
            return
        failures, brought_nothing = 0, True
        for piece in pieces:
            alone = self._ask(piece.queries) if len(pieces) > 1 and failures < _GIVEN_UP_AFTER else None
            failures = failures + 1 if alone is None else 0
            brought_nothing &= alone is None or all(finding.status == "error" for finding in alone)
            self._settle(piece, alone or [failed("the backend failed (see the judge's log)")] * len(piece.queries))
        self._count(brought_nothing)

    def _count(self, brought_nothing: bool) -> None:
        """Batches in a row on which the backend failed, be it by an exception or for each pair by itself."""
        self._failed_batches = self._failed_batches + 1 if brought_nothing else 0
        self._failed_at = time.monotonic()

    def _ask(self, queries: Sequence[JudgeQuery]) -> list[Finding] | None:
        """The backend's findings, one for each query; None where it fails."""
        pairs = [BlindPair(query.original_note, query.medical_note) for query in queries]
        try:
            findings = self._backend.judge(pairs)
        except BaseException as error:  # one bad batch must not end the thread, not even with SystemExit
            self._metrics.backend_failures.inc()
            logger.error("the backend failed: %s", shown(error, whole=self._log_text))
            return None
        if len(findings) != len(pairs):
            self._metrics.backend_failures.inc()
            logger.error("the backend gave %d findings for %d notes", len(findings), len(pairs))
            return None
        if self._log_text:
            for pair, finding in zip(pairs, findings, strict=True):
                logger.info("judged %s: %s", pair, finding)
        return findings

    def _settle(self, piece: Piece, findings: Sequence[Finding]) -> None:
        job = piece.job
        job.rows[piece.start : piece.stop] = [
            row_of(query, finding) for query, finding in zip(piece.queries, findings, strict=True)
        ]
        job.unanswered -= len(findings)
        if not job.unanswered:
            self._on_loop(self._finish, (job,))

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *args)
