"""`log.metrics_port`: how far a run is, for Prometheus."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aifx.checkpoint.manifest import read_info, step_directories
from aifx.config.sections import LogSection
from aifx.core.project import RunDirectory
from aifx.core.web.policy import is_loopback
from aifx.training.hook import Hook
from aifx.training.records import Record, RunInfo, TrainResult

if TYPE_CHECKING:
    from prometheus_client import Metric

logger = logging.getLogger(__name__)

STEP_GAUGES = {
    "aifx_train_step": ("Steps done.", "step"),
    "aifx_train_loss": ("Loss of the last step.", "loss"),
    "aifx_train_gradient_norm": ("Gradient norm of the last step.", "grad_norm"),
    "aifx_train_learning_rate": ("Learning rate of the last step.", "learning_rate"),
    "aifx_train_step_time_seconds": ("Time of the last step.", "step_time_s"),
    "aifx_train_data_wait_seconds": ("How long the last step waited for data.", "data_wait_s"),
    "aifx_train_mfu_ratio": ("Share of the devices' peak that the last step used.", "mfu"),
    "aifx_train_step_timestamp_seconds": ("Unix time of the last step.", "time"),
}
"""By name: the help text, and the field of `Record`."""

UNIT_GAUGES = {
    "aifx_train_units_per_second": ("Tokens, images or rows a second in the last step.", "units_per_s"),
    "aifx_train_units": ("Tokens, images or rows so far.", "units"),
}
"""The same, labelled with the unit."""


def open_metrics_server(settings: LogSection, run: RunDirectory) -> list[Hook]:
    """The server that answers Prometheus, if `log.metrics_port` is set. Raises EnvironmentFault if it cannot listen."""
    return [] if settings.metrics_port is None else [MetricsServer(settings.metrics_host, settings.metrics_port, run)]


class MetricsServer(Hook):
    """Answers GET /metrics from a thread of its own, with the last record; a scrape never holds a step."""

    def __init__(self, host: str, port: int, run: RunDirectory) -> None:
        """
        Args:
            port: 0 takes a free one, which is logged.
        """
        from prometheus_client import CollectorRegistry
        from starlette.routing import Route

        from aifx.core.web.app import make_app, metrics_endpoint
        from aifx.core.web.connections import SCRAPE_LIMITS
        from aifx.core.web.policy import Policy
        from aifx.core.web.server import HttpServer, bind, url_of

        self._run = run.name
        self._num_steps: int | None = None
        self._record: Record | None = None
        self._validation_loss: float | None = None
        self._saved: tuple[int | None, float] | None = None  # step and moment of the newest checkpoint
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        bound = bind(
            host,
            port,
            port_hint="aifx train --metrics-port 0    (a free port)",
            host_hint="aifx train --set log.metrics_host=127.0.0.1",
            listen=True,
        )
        self.url = f"{url_of(bound)}/metrics"
        policy = Policy(own_names_only=is_loopback(bound.getsockname()[0]), hints={404: "the metrics are at /metrics"})
        app = make_app([Route("/metrics", metrics_endpoint(registry))], policy)
        self._server = HttpServer(app, bound, limits=SCRAPE_LIMITS)
        self._thread = self._server.start()
        logger.info(f"metrics for Prometheus at {self.url}")

    def start(self, info: RunInfo) -> None:
        self._num_steps = info.num_steps
        self._saved = _newest_checkpoint(info.run) or (None, time.time())

    def on_record(self, record: Record) -> None:
        self._record = record
        if record.validation is not None:
            self._validation_loss = record.validation.get("loss")

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "checkpoint":
            self._saved = fields["step"], time.time()

    def stop(self, result: TrainResult | None) -> None:
        self._server.stop()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """The metrics of a scrape, as prometheus_client asks for them. A number that is not known yet is left out."""
        yield self._gauge("aifx_train_steps", "Steps of the whole run.", self._num_steps)
        yield self._gauge("aifx_train_validation_loss", "Loss of the last validation.", self._validation_loss)
        record, saved = self._record, self._saved
        for name, (text, field) in STEP_GAUGES.items():
            yield self._gauge(name, text, getattr(record, field, None))
        for name, (text, field) in UNIT_GAUGES.items():
            yield self._gauge(name, text, getattr(record, field, None), unit=getattr(record, "unit", ""))
        step, when = saved or (None, None)
        yield self._gauge("aifx_train_checkpoint_step", "Step of the newest checkpoint.", step)
        age = None if when is None else time.time() - when
        text = "Time since the newest checkpoint was written; without one, since training began."
        yield self._gauge("aifx_train_checkpoint_age_seconds", text, age)

    def _gauge(self, name: str, text: str, value: float | None, **labels: str) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(name, text, labels=("run", *labels))
        if value is not None:
            family.add_metric((self._run, *labels.values()), value)
        return family


def _newest_checkpoint(run: RunDirectory) -> tuple[int, float] | None:
    """The step of the checkpoint that a resumed run has, and when it was written."""
    steps = step_directories(run.checkpoints)
    info = read_info(steps[max(steps)]) if steps else None
    return None if info is None or info.saved_at is None else (info.step, info.saved_at)
