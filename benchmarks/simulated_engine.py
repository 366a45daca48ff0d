"""Engines at fixed rates: continuous batching as a queue with shared service.

    waiting (first come, first served) ──► at most ``slots`` in the batch ──► done
                                            each gets min(alone, full ÷ batch) tokens/s

That is how a decoding engine behaves: a small batch takes as long a step as a single sequence does (the weights are
read either way), a large one is bound by the engine's tokens/s. ``Batch`` is the bare queue, on any clock; ``Engine``
puts it on an event loop and looks like the Ray actor that a ``Fleet`` calls.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from openrlhf_medical.game.players import Reply


@dataclass(frozen=True, slots=True)
class Rates:
    """``slots``: sequences in the batch at most (vLLM's max_num_seqs). Tokens/s: ``alone`` of one sequence by itself,
    ``full`` of the whole engine."""

    slots: int
    alone: float
    full: float

    def each(self, batch: int) -> float:
        """Tokens/s that each of ``batch`` sequences gets."""
        return min(self.alone, self.full / batch)


class Batch:
    """One engine's sequences. Times are of the caller's clock and must not go back; work is in tokens."""

    __slots__ = ("_active", "_rates", "_served", "_since", "_waiting", "busy_s")

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._active: list[tuple[float, int, Hashable]] = []  # a heap: (served when done, tie-break, who)
        self._waiting: deque[tuple[float, int, Hashable]] = deque()
        self._served = 0.0  # tokens that a sequence that was always there would have got
        self._since = 0.0
        self.busy_s = 0.0
        """Seconds in which anything was in the batch."""

    def __len__(self) -> int:
        return len(self._active) + len(self._waiting)

    def add(self, now: float, who: Hashable, work: float, tie: int) -> None:
        self._advance(now)
        if len(self._active) < self._rates.slots:
            heapq.heappush(self._active, (self._served + work, tie, who))
        else:
            self._waiting.append((work, tie, who))

    def next_done(self) -> float | None:
        """When the next sequence ends if none is added before."""
        if not self._active:
            return None
        left = max(0.0, self._active[0][0] - self._served)
        return self._since + left / self._rates.each(len(self._active))

    def pop(self, now: float) -> Hashable:
        """Who is done at ``now``, which is ``next_done()``; the next in line takes its place."""
        self._advance(now)
        target, _, who = heapq.heappop(self._active)
        self._served = max(self._served, target)  # a rounding error must not be carried on
        if self._waiting:
            work, tie, following = self._waiting.popleft()
            heapq.heappush(self._active, (self._served + work, tie, following))
        return who

    def _advance(self, now: float) -> None:
        if self._active:
            self._served += (now - self._since) * self._rates.each(len(self._active))
            self.busy_s += now - self._since
        self._since = now


class Engine:
    """What a ``Fleet`` needs of an engine's handle: ``engine.reply.remote(prompt_ids, sampling, adapter)``, awaitable.

    ``play(prompt_ids, sampling)`` says what is replied, and how many tokens of work that is."""

    def __init__(self, rates: Rates, play: Callable[[list[int], dict[str, Any]], tuple[Reply, float]]) -> None:
        self.batch = Batch(rates)
        self.reply = self
        self._play = play
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0

    def remote(self, prompt_ids: list[int], sampling: dict[str, Any], adapter: str = "") -> asyncio.Future[Reply]:
        loop = asyncio.get_running_loop()
        reply, work = self._play(prompt_ids, sampling)
        done: asyncio.Future[Reply] = loop.create_future()
        self._count += 1
        self.batch.add(loop.time(), (done, reply), work, self._count)
        self._wind(loop)
        return done

    def _wind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self.batch.next_done()
        self._timer = None if when is None else loop.call_at(when, self._end_one, loop, when)

    def _end_one(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        done, reply = self.batch.pop(max(when, loop.time()))  # type: ignore[misc]  # as ``remote`` put it in
        if not done.done():
            done.set_result(reply)
        self._wind(loop)
