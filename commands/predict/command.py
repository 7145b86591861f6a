"""`aifx predict`: predictions of a trained model for rows or images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aifx.commands.console.options import JsonOption, ModelOption, RunOption, SetOption, StepOption, TrustCodeOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.json_values import encode_json
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.plurals import counted
from aifx.verbs.jobs import refuse_job

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


def predict(
    inputs: InputArgument,
    output: OutputOption = None,
    input_format: FormatOption = None,
    run: RunOption = None,
    model: ModelOption = None,
    trust_code: TrustCodeOption = None,
    step: StepOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Predict labels, probabilities or values for new rows, texts or images.

    Examples:
        aifx predict new.npz
        aifx predict rows.csv --output predictions.parquet
        aifx predict camera/*.png --output labels.csv --run main --step best
        aifx predict rows.csv --model fraud@production
        generate-rows | aifx predict - | head

    The model comes from the run alone. aifx does not read the data that it was trained on.
    Exits 1 if a series has no values: its record has the reason instead of a forecast.
    """
    with terminal(json, streams=output is None) as out, sigterm_as_ctrl_c():
        refuse_job("predict")
        check_limits()
        if json and output is None:
            hint = f"aifx predict {inputs[0]} --output predictions.jsonl --json"
            raise UsageError("--json requires --output", "otherwise the predictions are on stdout, too", hint)
        from aifx.verbs.models import choose_model
        from aifx.verbs.prediction import predict_files

        # Letters as they are only where nothing can mistake them for commands of a terminal.
        ascii = out.stdout.isatty() or not (out.stdout.encoding or "").lower().startswith("utf")

        def write(records: list[dict[str, Any]]) -> None:
            out.write("".join(encode_json(record, ensure_ascii=ascii) + "\n" for record in records))

        made = predict_files(
            choose_model(run, model),
            *inputs,
            output=output,
            write=write if output is None else None,
            input_format=input_format,
            step=step,
            settings=set_,
            trust_code=trust_code,
        )
        out.result(made)
        where = f" in {output}" if output is not None else ""
        kind = "run" if made.model is None else "model"
        summary = f"{counted(made.predictions, 'prediction')}{where}, by {kind} {made.run}, step {made.step}"
        (out.log if output is None else out.print)(summary)
