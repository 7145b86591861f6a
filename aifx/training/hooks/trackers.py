"""Trackers that get each logged record, in addition to metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each writes in a thread of its own, so that a slow tracker never holds a step. A run that is resumed goes on in the same
tracked run; steps that a tracker has already are not sent twice if the tracker knows them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.core.extras import install_command
from aifx.core.files import check_tree, make_folders, read_file, replace_file
from aifx.core.project import RunDirectory
from aifx.core.statuses import FINISHED, STOPPED
from aifx.training.hook import Hook
from aifx.training.records import Record, RunInfo, TrainResult, flatten

logger = logging.getLogger(__name__)


def open_trackers(names: Sequence[str], run: RunDirectory) -> list[Hook]:
    """Hooks for `log.trackers`. Raises EnvironmentFault if the package of one is missing."""
    trackers: list[Hook] = []
    for name in dict.fromkeys(names):
        package, tracker = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            what = f"log.trackers has {name!r}, and the package {package} is not installed"
            raise EnvironmentFault(what, "each tracker needs its package", install_command(name))
        trackers.append(tracker(name, run))
    return trackers


class Tracker(Hook):
    """A tracker with a thread of its own, which calls `open`, then `write` for each record, then `close`.

    aifx drops a tracker that fails, with a warning, and training goes on.
    """

    def __init__(self, name: str, run: RunDirectory) -> None:
        self.name, self.run = name, run
        self._failed = False
        self._queue: queue.SimpleQueue[tuple[int, dict[str, float]] | str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, info: RunInfo) -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, status: str) -> None: ...

    def start(self, info: RunInfo) -> None:
        self._info = info
        self._thread = threading.Thread(target=self._work, name=f"aifx-{self.name}", daemon=True)
        self._thread.start()

    def on_record(self, record: Record) -> None:
        if not self._failed and self._info.is_logged(record):
            values = {k: v for k, v in flatten(record.document()) if k not in ("step", "time")}
            self._queue.put((record.step, values))

    def stop(self, result: TrainResult | None) -> None:
        """Waits for what is queued, a minute at most: a tracker that hangs must not hold the run's end."""
        if self._thread is not None:
            self._queue.put(result.status if result is not None else "failed")
            self._thread.join(60.0)

    def _work(self) -> None:
        try:
            self.open(self._info)
            while not isinstance(item := self._queue.get(), str):
                self.write(*item)
            self.close(item)
        except Exception as e:  # whatever a tracker's client raises: the run matters more
            self._failed = True
            logger.warning(f"{self.name} is given up: {type(e).__name__}: {e}")


class TensorBoard(Tracker):
    """Event files in the run's `trackers/tensorboard`."""

    def open(self, info: RunInfo) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard forgets what a process that was cut off wrote from this step on.
        purge = info.recorded_step + 1
        # The step keeps apart the files of two processes that began within a second: their names have nothing else.
        suffix = f".{info.first_step:09}"
        folder = _folder(self.run, "tensorboard")
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=5, filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, status: str) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run in the project of that name; offline, in the run's `trackers/wandb`, without a login or WANDB_MODE."""

    def open(self, info: RunInfo) -> None:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._run: Any = wandb.init(
            project=info.config.project.name,
            name=info.run.name,
            id=_tracked_id(self.run, "wandb"),
            # Each start writes into a new folder of its own, and links to logs outside of the earlier ones.
            dir=str(_folder(self.run, "wandb", deep=False).parent),
            config=info.config.values(),
            mode=mode,
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)  # drops a step that is not beyond the last one it has

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status in FINISHED else 1)


class MLflow(Tracker):
    """A run in the experiment of the project's name; in MLFLOW_TRACKING_URI, else in the run's `trackers/mlflow`."""

    def open(self, info: RunInfo) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        folder = _folder(self.run, "mlflow")
        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or folder.absolute().as_uri())
        name = info.config.project.name
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        kept = self.run.trackers / "mlflow-run-id"
        if kept.exists():
            self._id = read_file(kept, below=self.run.path).decode().strip()
            self._client.update_run(self._id, status="RUNNING")
            self._last = max((m.step for m in self._client.get_metric_history(self._id, "loss")), default=0)
            return
        self._id = self._client.create_run(experiment_id, run_name=info.run.name).info.run_id
        self._last = 0
        replace_file(kept, self._id.encode(), below=self.run.path)
        for section, values in info.config.values().items():
            for key, value in values.items():
                self._client.log_param(self._id, f"{section}.{key}", value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self._last:
            now = round(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, status: str) -> None:
        ended = "FINISHED" if status in FINISHED else "KILLED" if status in STOPPED else "FAILED"
        self._client.set_terminated(self._id, status=ended)


TRACKERS: dict[str, tuple[str, type[Tracker]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
}
"""The package and the class of each tracker that `log.trackers` can name."""


def _tracked_id(run: RunDirectory, tracker: str) -> str:
    """An id that stays with the run, made on first use."""
    path = run.trackers / f"{tracker}-run-id"
    if not path.exists():
        make_folders(run.trackers, below=run.path)
        replace_file(path, os.urandom(8).hex().encode(), below=run.path)
    return read_file(path, below=run.path).decode().strip()


def _folder(run: RunDirectory, tracker: str, *, deep: bool = True) -> Path:
    """The folder that a tracker writes into. Raises UnsafeFile if the run holds a link in its place."""
    folder = run.trackers / tracker
    make_folders(folder, below=run.path)
    check_tree(folder, deep=deep)
    return folder
