"""Several judges behind one client: which one is asked next, and which one is left alone for a while."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from openrlhf_medical.errors import UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


def backoff_s(failures: int) -> float:
    """Exponential with full jitter, so that clients that failed together do not come back together."""
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** max(0, failures - 1))


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


class _Replica:
    __slots__ = ("failures", "in_flight", "resting_until", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        self.failures = 0
        self.resting_until = 0.0


class Replicas:
    """Thread-safe. A replica that failed rests for a growing while, then is tried again; one that answers is
    as good as new."""

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise UserError("no judge url; give at least one http://HOST:PORT")
        self._replicas = [_Replica(checked_url(url)) for url in dict.fromkeys(urls)]
        self._lock = threading.Lock()

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self._replicas]

    def take(self) -> tuple[str | None, float]:
        """The least busy replica that is not resting; else None and the seconds until one has rested."""
        with self._lock:
            now = time.monotonic()
            awake = [replica for replica in self._replicas if replica.resting_until <= now]
            if not awake:
                return None, min(replica.resting_until for replica in self._replicas) - now
            least = min(replica.in_flight for replica in awake)
            chosen = random.choice([replica for replica in awake if replica.in_flight == least])
            chosen.in_flight += 1
            return chosen.url, 0.0

    def answered(self, url: str) -> None:
        with self._lock:
            replica = self._of(url)
            replica.in_flight -= 1
            replica.failures = 0

    def failed(self, url: str, rest_s: float | None = None) -> None:
        """``rest_s``: as long as the replica itself asked for (Retry-After)."""
        with self._lock:
            replica = self._of(url)
            replica.in_flight -= 1
            replica.failures += 1
            rest = backoff_s(replica.failures) if rest_s is None else rest_s
            replica.resting_until = max(replica.resting_until, time.monotonic() + rest)

    def _of(self, url: str) -> _Replica:
        return next(replica for replica in self._replicas if replica.url == url)
