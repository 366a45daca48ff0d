"""What GET /metrics tells Prometheus, in a registry of the app's own (several apps may share a process)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ENDPOINTS = frozenset({"/judge", "/evaluate", "/get_reward", "/health", "/metrics"})
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class ServerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "judge_requests", "Requests answered", ["endpoint", "code"], registry=self.registry
        )  # fmt: skip
        self._labels = Counter("judge_labels", "Labels given, by status", ["status"], registry=self.registry)
        self._seconds = Histogram(
            "judge_request_seconds", "Time to answer", ["endpoint"], buckets=_SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("judge_queries_in_flight", "Queries taken and not yet answered", registry=self.registry)
        self.ready = Gauge("judge_ready", "1 when the backend is loaded", registry=self.registry)

    def answered(self, path: str, code: int, seconds: float) -> None:
        endpoint = path if path in _ENDPOINTS else "other"
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def labelled(self, statuses: Iterable[str]) -> None:
        for status in statuses:
            self._labels.labels(status).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)
