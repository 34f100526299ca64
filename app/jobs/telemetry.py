"""The service's figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Telemetry:
    """One registry an application: nothing global, so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queued = Gauge("optimizing_jobs_queued", "Jobs that wait", ["slot"], registry=self.registry)
        self.running = Gauge("optimizing_jobs_running", "Jobs whose process runs", ["slot"], registry=self.registry)
        self.wait = Histogram(
            "optimizing_job_wait_seconds",
            "From acceptance to the start of the process",
            ["action"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.run = Histogram(
            "optimizing_job_run_seconds",
            "From the start of the process to the end of the job",
            ["action", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.finished = Counter(
            "optimizing_jobs_finished_total",
            "Jobs that ended; code is the error's, or empty",
            ["action", "outcome", "code"],
            registry=self.registry,
        )
        self.cached = Counter(
            "optimizing_jobs_cached_total", "Jobs answered with an earlier result", ["action"], registry=self.registry
        )
        self.cold = Counter(
            "optimizing_children_cold_total", "Processes that did not find torch preloaded", registry=self.registry
        )
        self.deliveries = Counter(
            "optimizing_callback_deliveries_total", "Deliveries of callbacks", ["outcome"], registry=self.registry
        )
