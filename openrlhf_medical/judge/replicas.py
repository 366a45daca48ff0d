"""Several judges behind one client: which one is asked next, and which one is left alone for a while.

Each replica has a circuit breaker:

    closed ──(three faults in a row, or at once when nobody answers)──► open, for a pause that grows
      ▲                                                                   │ the pause is over
      └──(it went well)── half-open: one trial request ◄──────────────────┘
                               └──(it did not)──► open, for longer
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import urlsplit

from openrlhf_medical.errors import UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
FAULTS_TO_OPEN = 3
"""Faults in a row; one in a hundred answers that is garbage is no reason to leave a replica alone."""

_random = random.Random()  # one of its own: the run's seeded generator must not depend on what a judge does


def backoff_s(failures: int) -> float:
    """Exponential with jitter, so that clients that failed together do not come back together."""
    return _random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(max(0, failures - 1), 16))


def spread_s(pause_s: float) -> float:
    """A little more than was asked for, and not the same for all clients that were asked."""
    return pause_s * _random.uniform(1.0, 1.2)


def checked_url(url: str) -> str:
    """Raises UserError on anything but http(s)://host[:port][/path]."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"judge url {url!r} is not an address; write http://HOST:PORT")
    return url.rstrip("/")


class State(Enum):
    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class Verdict(Enum):
    """What a request says of the replica: it works; it is full; it answered with what is worth nothing; nobody
    is there, or nobody who wants anything of us."""

    WORKS = auto()
    FULL = auto()
    FAULTY = auto()
    GONE = auto()


@dataclass(slots=True)
class Breaker:
    """Pure: times are handed in. ``not_before``: when it may be asked, unless a trial is under way."""

    state: State = State.CLOSED
    not_before: float = 0.0
    faults: int = 0
    opened: int = 0

    def free_at(self) -> float:
        return math.inf if self.state is State.HALF_OPEN else self.not_before

    def enter(self) -> bool:
        """A request begins; only once ``free_at`` is over. True if it is the one trial."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN
            return True
        return False

    def leave(self, verdict: Verdict, now: float, *, trial: bool, pause_s: float | None = None) -> None:
        """A request ended. ``pause_s``: how long the replica itself wants to be left alone.

        While the breaker is not closed only the trial counts: requests that began before tell old news, and
        ten that fail together are one failure.
        """
        if not trial and self.state is not State.CLOSED:
            return
        if verdict in (Verdict.WORKS, Verdict.FULL):
            self.state, self.faults, self.opened = State.CLOSED, 0, 0
            if verdict is Verdict.FULL:
                self._rest(now, backoff_s(1) if pause_s is None else pause_s)
            return
        self.faults += 1
        if trial or verdict is Verdict.GONE or self.faults >= FAULTS_TO_OPEN:
            self.state, self.faults, self.opened = State.OPEN, 0, self.opened + 1
            self._rest(now, backoff_s(self.opened) if pause_s is None else pause_s)

    def _rest(self, now: float, pause_s: float) -> None:
        self.not_before = max(self.not_before, now + pause_s)


@dataclass(slots=True, eq=False)
class _Replica:
    url: str
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """Leave to send one request to ``url``; to be given back with ``Replicas.give_back``."""

    url: str
    trial: bool


class Replicas:
    """Thread-safe."""

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise UserError("no judge url; give at least one http://HOST:PORT")
        self._replicas = {url: _Replica(url) for url in map(checked_url, urls)}
        self._changed = threading.Condition()
        self._closed = False

    @property
    def urls(self) -> list[str]:
        return list(self._replicas)

    def last_words(self) -> dict[str, str]:
        """Why each replica's latest request failed, by url; "" where it did not."""
        with self._changed:
            return {url: replica.said for url, replica in self._replicas.items()}

    def lease(self, until: float, avoid: str | None = None) -> Lease | None:
        """Blocks for a replica that may be asked; None when there was none ``until`` then, or once closed.

        The least busy, which one that is due for its trial is, as a rule. ``avoid``: only where there is no
        other.
        """
        with self._changed:
            while not self._closed and (now := time.monotonic()) < until:
                free = [replica for replica in self._replicas.values() if replica.breaker.free_at() <= now]
                if free:
                    chosen = _random.choice(_best(free, avoid))
                    chosen.in_flight += 1
                    return Lease(chosen.url, chosen.breaker.enter())
                soonest = min(replica.breaker.free_at() for replica in self._replicas.values())
                self._changed.wait(min(until, soonest) - now)
            return None

    def give_back(self, lease: Lease, verdict: Verdict, reason: str = "", pause_s: float | None = None) -> None:
        """``reason``: what the replica said, where it is not well; ``pause_s``: as it asked for (Retry-After)."""
        with self._changed:
            replica = self._replicas[lease.url]
            replica.in_flight -= 1
            replica.breaker.leave(verdict, time.monotonic(), trial=lease.trial, pause_s=pause_s)
            if reason or replica.breaker.state is State.CLOSED:
                replica.said = reason
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _best(free: list[_Replica], avoid: str | None) -> list[_Replica]:
    """Equally good ones among those that may be asked."""
    free = [replica for replica in free if replica.url != avoid] or free
    least = min(replica.in_flight for replica in free)
    return [replica for replica in free if replica.in_flight == least]
