"""Metrics of a service, for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

PREFIX = "orchestrator_serve_"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters, histograms and gauges of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}requests",
            "Answered requests",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            f"{PREFIX}request_seconds",
            "From the head of a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.draw_seconds = Histogram(
            f"{PREFIX}draw_seconds",
            "From a valid request to its images, waiting included",
            ["role", "version"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.draw_errors = Counter(
            f"{PREFIX}draw_errors",
            "Requests that a version could not draw",
            ["role", "version"],
            registry=registry,
        )
        self.images = Counter(f"{PREFIX}images", "Images drawn", ["version"], registry=registry)
        self.batch_size = Histogram(
            f"{PREFIX}batch_size",
            "Images that were drawn together",
            ["version"],
            buckets=_SIZES,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            f"{PREFIX}batch_seconds",
            "Time to draw a batch",
            ["version"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(f"{PREFIX}waiting_images", "Images that wait", registry=registry)
        self.version = Gauge(
            f"{PREFIX}version",
            "Number of the version that serves",
            ["role"],
            registry=registry,
        )
        self.refresh_failures = Counter(
            f"{PREFIX}refresh_failures",
            "Times that the version to serve could not be looked up or loaded",
            ["role"],
            registry=registry,
        )

    def observe_batch(self, version: str, size: int, seconds: float) -> None:
        """Count a batch of a version."""
        self.images.labels(version).inc(size)
        self.batch_size.labels(version).observe(size)
        self.batch_seconds.labels(version).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)
