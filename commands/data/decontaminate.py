"""`aifx data decontaminate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, print_made
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_steps import Contamination


@option_group
def decontaminate(
    name: DatasetArgument,
    given: StepOptions,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="TEST",
            help="Data set or file with texts that must not be in NAME. Can be repeated. By default the validation "
            "and test rows of NAME, and the validation and test splits of the project.",
        ),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Make a version without the rows that overlap.")] = False,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="FIELD", help="Field with the text in the files of --against.")
    ] = "text",
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="List N rows that overlap.")] = 20,
) -> None:
    """Find rows that share 13 words in a row with the texts of a test, and drop them with --drop.

    Examples:
        aifx data decontaminate corpus
        aifx data decontaminate corpus --against benchmark.jsonl --text-field question
        aifx data decontaminate corpus --against benchmarks@3f2a --drop

    Exits 1 if a row overlaps, unless --drop makes a version without it.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_contamination, data_decontaminate

        if drop:
            made = data_decontaminate(name, against=against or (), text_field=text_field, **given.of_step())
            print_made(out, made)
            return
        found = data_contamination(name, against=against or (), text_field=text_field, show=show, **given.of_step())
        out.result(found)
        _print(out, found)


def _print(out: Output, found: Contamination) -> None:
    for reference in found.against:
        short = f", {reference.too_short:,} of them shorter than 13 words" if reference.too_short else ""
        out.log(f"compared with {reference.texts:,} texts of {reference.name}{short}")
    for overlap in found.overlaps:
        out.print(f"{overlap.row} of {overlap.source}: {overlap.words:,} words of {overlap.place}")
        out.print(f"  {' '.join(overlap.text.split())}", soft_wrap=True)
    if found.overlapping > len(found.overlaps):
        out.print(f"and {found.overlapping - len(found.overlaps):,} more rows")
    if found.overlapping:
        out.print(
            f"{found.overlapping:,} of {counted(found.rows, 'row')} of {found.reference} overlap: "
            "--drop leaves them out"
        )
    else:
        out.print(f"no row of {found.reference} overlaps")
