"""`aifx predict`: predictions of a trained model for rows or images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption, RunOption, SetOption, StepOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.project import find_project
from aifx.core.steps import parse_step
from aifx.data.readers.rows import input_files
from aifx.data.row_writers import json_line, open_writer, output_format

InputArgument = Annotated[
    list[str], typer.Argument(metavar="INPUT", help="Files of rows, texts or images. - reads JSON Lines from stdin.")
]

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write predictions to FILE (.jsonl, .csv or .parquet). By default JSON Lines on stdout.",
    ),
]

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--input-format",
        metavar="FORMAT",
        help="Format of the inputs, such as jsonl or csv. By default each file's extension.",
    ),
]


@dataclass(frozen=True)
class Predictions:
    """What `aifx predict --json` prints.

    Attributes:
        predictions: how many there are.
        skipped: series without values, which have no forecast.
        output: the file that has them.
    """

    run: str
    step: int
    predictions: int
    skipped: tuple[str, ...]
    output: str


def predict(
    inputs: InputArgument,
    output: OutputOption = None,
    input_format: FormatOption = None,
    run: RunOption = None,
    step: StepOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Predict labels, probabilities or values for new rows, texts or images.

    Examples:
        aifx predict new.npz
        aifx predict rows.csv --output predictions.parquet
        aifx predict camera/*.png --output labels.csv --run main --step best
        generate-rows | aifx predict - | head

    The model comes from the run alone. aifx does not read the data that it was trained on.
    Exits 1 if a series has no values: its record has the reason instead of a forecast.
    """
    with terminal(json, streams=output is None) as out, sigterm_as_ctrl_c():
        at = parse_step(step)
        refuse_job("predict")
        check_limits()
        if json and output is None:
            hint = f"aifx predict {inputs[0]} --output predictions.jsonl --json"
            raise UsageError("--json requires --output", "otherwise the predictions are on stdout, too", hint)
        if output is not None:
            output_format(output)  # refused before jax is loaded
        files = input_files(inputs, input_format, output)
        project = find_project()
        directory = project.existing_run(run)
        from aifx.loading.model import LoadedModel
        from aifx.loading.restore import restore_run

        model = LoadedModel(restore_run(directory, project, step=at, overrides=set_ or ()))
        with _writing(out, output) as write:
            count, skipped = model.write_predictions(files, write)
        count -= len(skipped)
        out.document(Predictions(model.run, model.step, count, tuple(skipped), str(output)))
        where = f" in {output}" if output is not None else ""
        summary = f"{count:,} prediction{'s' * (count != 1)}{where}, by run {model.run}, step {model.step}"
        (out.log if output is None else out.print)(summary)
        if skipped:
            raise SystemExit(ExitCode.VERDICT)


@contextmanager
def _writing(out: Output, output: Path | None) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Where predictions go: a file, which is there when all are written, or stdout."""
    if output is None:
        # Letters as they are only where nothing can mistake them for commands of a terminal.
        ascii = out.stdout.isatty() or not (out.stdout.encoding or "").lower().startswith("utf")
        yield lambda records: out.write("".join(json_line(record, ascii=ascii) for record in records))
        return
    with open_writer(output) as writer:
        yield writer.write
