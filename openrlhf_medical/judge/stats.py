"""What a client counts: labels by status, requests, retries, and how long labels took."""

from __future__ import annotations

import threading
from collections import Counter, deque

from openrlhf_medical.game.players import LabelStatus

_KEPT = 4096  # latest labels that the latency is taken over


class ClientStats:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter({"ok": 0, "abstain": 0, "error": 0, "requests": 0, "retries": 0})
        self._seconds: deque[float] = deque(maxlen=_KEPT)

    def count(self, status: LabelStatus, seconds: float) -> None:
        with self._lock:
            self._counts[status] += 1
            self._seconds.append(seconds)

    def requested(self) -> None:
        with self._lock:
            self._counts["requests"] += 1

    def retried(self) -> None:
        with self._lock:
            self._counts["retries"] += 1

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            out: dict[str, float] = dict(self._counts)
            seconds = sorted(self._seconds)
        if seconds:
            out["latency_s"] = sum(seconds) / len(seconds)
            out["latency_p95_s"] = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
        return out
