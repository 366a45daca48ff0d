"""What GET /metrics tells Prometheus, in a registry of the app's own (several apps may share a process)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ENDPOINTS = frozenset({"/judge", "/evaluate", "/get_reward", "/health", "/metrics", "/openapi.json"})
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServerMetrics:
    """Queries are counted by ``waiting``, ``in_flight``, ``cancelled``, ``expired`` and ``labelled``; requests by
    ``answered`` and ``refused``."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.ready = Gauge("judge_ready", "1 when the backend is loaded", registry=registry)
        self.waiting = Gauge("judge_queue_queries", "Queries that wait for the backend", registry=registry)
        self.in_flight = Gauge("judge_queries_in_flight", "Queries taken and not yet answered", registry=registry)
        self.cancelled = Counter("judge_cancelled_queries", "Never judged: the client had gone", registry=registry)
        self.expired = Counter("judge_expired_queries", "Not judged in their time", registry=registry)
        self.refused = Counter("judge_refused", "Requests refused (429), by what was full", ["why"], registry=registry)
        self.backend_failures = Counter("judge_backend_failures", "Calls of the backend that failed", registry=registry)
        self._requests = Counter("judge_requests", "Requests answered", ["endpoint", "code"], registry=registry)
        self._labels = Counter("judge_labels", "Labels given, by status", ["status"], registry=registry)
        self._seconds = Histogram(
            "judge_request_seconds", "Time to answer", ["endpoint"], buckets=_SECONDS, registry=registry
        )
        self._wait_seconds = Histogram(
            "judge_wait_seconds", "Time from arrival to the backend, by request", buckets=_SECONDS, registry=registry
        )
        self._batch_seconds = Histogram(
            "judge_batch_seconds", "Time of the backend for one batch", buckets=_SECONDS, registry=registry
        )
        self._batch_queries = Histogram(
            "judge_batch_queries", "Queries in one batch", buckets=_SIZES, registry=registry
        )

    def answered(self, path: str, code: int, seconds: float) -> None:
        endpoint = path if path in _ENDPOINTS else "other"
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def labelled(self, statuses: Iterable[str]) -> None:
        for status in statuses:
            self._labels.labels(status).inc()

    def batch(self, queries: int, seconds: float) -> None:
        self._batch_queries.observe(queries)
        self._batch_seconds.observe(seconds)

    def waited(self, seconds: Iterable[float]) -> None:
        for each in seconds:
            self._wait_seconds.observe(each)

    def render(self) -> bytes:
        return generate_latest(self.registry)
