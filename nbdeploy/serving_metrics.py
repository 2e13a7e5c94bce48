"""Prometheus metrics of one deployment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

if TYPE_CHECKING:
    from nbdeploy.prediction_log import LogWriter


class Metrics:
    """Counters of one worker. Where ``PROMETHEUS_MULTIPROC_DIR`` is set, `render` sums all workers of the deployment."""

    def __init__(self, version: str, log: LogWriter) -> None:
        self._log = log
        self._seen_drops = 0
        registry = CollectorRegistry()
        self._requests = Counter("nbdeploy_requests", "Requests to /predict", ["version", "status"], registry=registry)
        self._rows = Counter("nbdeploy_rows", "Rows answered", ["version"], registry=registry)
        self._seconds = Histogram("nbdeploy_request_seconds", "Time to answer /predict", ["version"], registry=registry)
        self._drops = Counter("nbdeploy_log_drops", "Predictions that the log lost", ["version"], registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
        self._batch_rows = Histogram(
            "nbdeploy_batch_rows", "Rows of a model call", ["version"], registry=registry, buckets=sizes
        )
        self._batch_requests = Histogram(
            "nbdeploy_batch_requests", "Requests of a model call", ["version"], registry=registry, buckets=sizes[:9]
        )
        self._waiting = Gauge(
            "nbdeploy_waiting_rows", "Rows that wait for the model", ["version"], registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        live = Gauge("nbdeploy_info", "What is served", ["version"], registry=registry, multiprocess_mode="livemax")
        live.labels(version).set(1)
        self._version = version
        self._registry = registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            self._registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]

    def answered(self, rows: Sequence[int], waiting: int) -> None:
        """Count one model call: the rows of each request that it answered, and how many rows wait for the next."""
        self._rows.labels(self._version).inc(sum(rows))
        self._batch_rows.labels(self._version).observe(sum(rows))
        self._batch_requests.labels(self._version).observe(len(rows))
        self._waiting.labels(self._version).set(waiting)

    def observe(self, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests.labels(self._version, str(status)).inc()
        self._seconds.labels(self._version).observe(seconds)
        if lost := self._log.dropped - self._seen_drops:
            self._drops.labels(self._version).inc(lost)
            self._seen_drops += lost

    def render(self) -> tuple[bytes, str]:
        """The text of ``/metrics`` and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
