"""The model of a run, and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import ExitCode, UsageError
from aifx.core.results import Result
from aifx.core.steps import parse_step
from aifx.verbs.arguments import Settings, Step, StrPath, overrides
from aifx.verbs.models import open_model

if TYPE_CHECKING:
    from aifx.data.frames import Rows
    from aifx.loading.prediction import LoadedModel


@dataclass(frozen=True)
class Predictions(Result):
    """Document of `aifx predict --json`.

    Attributes:
        predictions: how many there are.
        skipped: series without values, which have no forecast.
        output: the file that has them.
        model: digest of the model version, with `--model`.
    """

    run: str
    step: int
    predictions: int
    skipped: tuple[str, ...]
    output: str
    model: str | None = None

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.skipped else ExitCode.OK


def load(run: StrPath, *, step: Step = None, settings: Settings = None, trust_code: str | None = None) -> LoadedModel:
    """Load the model of a run, ready to make predictions. This needs the run alone, not the data of its training.

    The model has three public methods: `predict(rows)` and `predict_files(*paths)` yield a prediction for each row, and
    `read(files)` yields the rows. Raises UsageError if there is no run, CheckpointError for a checkpoint that is
    missing or damaged.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint` of the run's project.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.

    Example:
        >>> model = aifx.load("runs/main")
        >>> for prediction in model.predict([{"text": "Call me Ishmael."}]):
        ...     prediction["bits_per_byte"] > 0
        True
    """
    directory, project = open_model(run, trust_code)
    from aifx.loading.prediction import LoadedModel
    from aifx.loading.restore import restore_run

    return LoadedModel(restore_run(directory, project, step=parse_step(step), overrides=overrides(settings)))


def predict(run: StrPath, rows: Rows, *, step: Step = None) -> Iterator[dict[str, Any]]:
    """Yield a prediction for each row, in order. `load` keeps a model for more than one call.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        rows: mappings with the fields that the task reads, as a list or an iterator; a data frame of pandas or Polars,
            or an Arrow table; or NumPy arrays with names: a structured array, or a mapping of arrays `[rows, ...]`.
            Missing values of a data frame are None.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.

    Example:
        >>> (prediction,) = aifx.predict("runs/main", [{"text": "Call me Ishmael."}])
        >>> prediction["bits_per_byte"] > 0
        True
    """
    return load(run, step=step).predict(rows)


def predict_files(
    run: StrPath,
    *inputs: str,
    output: StrPath | None = None,
    write: Callable[[list[dict[str, Any]]], None] | None = None,
    input_format: str | None = None,
    step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
) -> Predictions:
    """Predict for rows, texts or images of files, and write the predictions to a file.

    The verdict is bad if a series has no values: its record has the reason instead of a forecast.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        inputs: files of rows, texts or images; "-" is JSON Lines from stdin.
        output: a .jsonl, .csv or .parquet file.
        write: called with predictions, some at a time, instead.
        input_format: format of the inputs, such as "jsonl"; by default each file's extension.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.

    Example:
        >>> aifx.predict_files("runs/main", "texts/moby.txt", output="predictions.jsonl").predictions
        1
    """
    from aifx.data.readers.rows import input_files
    from aifx.data.row_writers import open_writer, output_format

    if (output is None) == (write is None):
        raise UsageError("predict_files takes either output or write", "predictions go to one place")
    path = None if output is None else Path(output)
    if path is not None:
        output_format(path)  # refused before jax is loaded
    files = input_files(inputs, input_format, path)
    model = load(run, step=step, settings=settings, trust_code=trust_code)
    with ExitStack() as opened:
        if path is not None:
            write = opened.enter_context(open_writer(path)).write
        assert write is not None
        count, skipped = model.write_predictions(files, write)
    digest = model.trained.run.model_digest
    return Predictions(model.run, model.step, count - len(skipped), tuple(skipped), str(output), digest)
