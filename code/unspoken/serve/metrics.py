"""What a server counts, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server.

    Args:
        waiting: Tells how many completions wait.
        running: Tells how many are being answered.
        held: Tells how many caches are kept, and how many bytes.
    """

    def __init__(
        self, waiting: Callable[[], int], running: Callable[[], int], held: Callable[[], tuple[int, int]]
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # Memory, processor time, open files; on Linux.
        self.requests = Counter(
            "unspoken_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "unspoken_request_seconds",
            "Time to answer, by route.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "unspoken_tokens",
            "Tokens: read by the model, skipped as their columns were there, written.",
            ("kind",),
            registry=self._registry,
        )
        self.handed_over = Counter(
            "unspoken_cache_bytes", "Bytes of caches put and got.", ("way",), registry=self._registry
        )
        for name, told, value in (
            ("unspoken_waiting", "Completions that wait.", waiting),
            ("unspoken_running", "Completions that are being answered.", running),
            ("unspoken_caches", "Caches kept.", lambda: held()[0]),
            ("unspoken_caches_bytes", "Bytes of caches kept.", lambda: held()[1]),
        ):
            Gauge(name, told, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self._registry)
