"""`aifx data classify`: a model of the project as a filter."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, print_made
from aifx.verbs.completion import complete_run


@option_group
def classify(
    name: DatasetArgument,
    given: StepOptions,
    run: Annotated[
        str,
        typer.Option(
            "--run", metavar="NAME", help="Run of the project whose model scores rows.", autocompletion=complete_run
        ),
    ],
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="SHARE", help="Share of the rows to keep, those with the largest scores."),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", metavar="SCORE", help="Least score to keep, instead of --keep.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="CLASS", help="Class whose probability is the score. For runs that classify."),
    ] = None,
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="Column that gets the score.")] = "score",
    step: Annotated[
        str | None,
        typer.Option("--step", metavar="N|best|last", help="Checkpoint to use. By default eval.checkpoint."),
    ] = None,
) -> None:
    """Score each row with the model of a run, and keep the rows with the best scores.

    Examples:
        aifx data classify corpus --run quality --keep 0.3
        aifx data classify reviews --run sentiment --label positive --at-least 0.8

    The score is the probability of a class, a predicted number, or minus the bits per byte of a language model.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_classify import data_classify

        made = data_classify(
            name, run=run, keep=keep, at_least=at_least, label=label, column=column, step=step, **given.of_step()
        )
        print_made(out, made)
        if made.rows:
            out.print(f"the least score kept is {made.facts['least_score']:.4g}")
