"""`aifx data`: versions of data sets, and a look at the data of a project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data import label
from aifx.commands.data.add import add
from aifx.commands.data.classify import classify
from aifx.commands.data.expect import expect
from aifx.commands.data.feedback import feedback
from aifx.commands.data.index import index, search
from aifx.commands.data.make import make
from aifx.commands.data.options import FILES_HELP, RootOption
from aifx.commands.data.profile import profile, query, report
from aifx.commands.data.recipe import recipe
from aifx.commands.data.steps import clean, compact, decontaminate, dedupe, join, mix, pii, split
from aifx.commands.data.versions import diff, erase, gc, lineage, ls, print_page, push, verify, why
from aifx.core.errors import UsageError
from aifx.core.plurals import counted
from aifx.verbs.completion import complete_run

if TYPE_CHECKING:
    from aifx.verbs.data_show import ShownBatch, ShownData, ShownRow, ShownValues


def run_tasks(work: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder in which the step works.")]) -> None:
    """Run this element's share of the tasks of a step."""
    with terminal():
        from aifx.verbs.data_versions import run_data_tasks

        element, elements = (os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "COUNT"))
        if not element.isdecimal() or not elements.isdecimal():
            why = "it reads its share from SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT"
            raise UsageError(
                "aifx data run-tasks runs in an array job of Slurm only", why, "aifx data dedupe --on slurm"
            )
        run_data_tasks(work, int(element), int(elements))


app = typer.Typer(
    help="""Collect, clean and version data, and look at the data of a project.

    Examples:
        aifx data add corpus texts/ --license CC-BY-4.0
        aifx data make                 do the missing steps of recipe.toml
        aifx data ls                   list data sets and their versions
        aifx data verify corpus        compare its files with their digests
        aifx data gc --dry-run         list what killed commands left
        aifx data compact corpus       write its rows into whole shards
        aifx data profile corpus       print its columns, lengths and values
        aifx data clean corpus         repair texts, drop rows by rules
        aifx data why 3f2a91c07be4-12  explain why a row is kept or dropped
        aifx data expect corpus        judge it by the rules of rules.toml
        aifx data pii corpus --mask    mask personal data and secrets
        aifx data dedupe corpus        drop copies, and near duplicates with --near
        aifx data classify corpus --run quality --keep 0.3
        aifx data split corpus         send rows to training, validation and test
        aifx data decontaminate corpus find rows that a test contains
        aifx data label export reviews labels.json
        aifx data index corpus         make an index of its texts
        aifx data search corpus QUERY  find the rows nearest to a text
        aifx data show                 print training rows as the model sees them
        aifx data show data.train      print what the files are that training reads
        aifx data show --step 120      print rows of the batch of a step
    """
)


RunOfDataOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Run whose settings and tokenizer to use. By default those of aifx.toml.",
        autocompletion=complete_run,
    ),
]


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help=f"Data set or version to describe, instead of rows. {FILES_HELP}",
        ),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"],
        typer.Option("--split", metavar="train|validation|test", help="Split to show."),
    ] = "train",
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Show N rows.")] = 2,
    first: Annotated[int, typer.Option("--first", metavar="ROW", min=0, help="Begin with this row.")] = 0,
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="N", min=1, help="Show the training batch that this step takes."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=0, help="Show the training batch of this number, from 0."),
    ] = None,
    run: RunOfDataOption = None,
    set_: SetOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Print rows as the model sees them: tokens, and which of them the loss counts, or a table's values.

    With NAME, print what a version is: its rows, columns and sources, what made it, and the runs trained on it.

    Examples:
        aifx data show
        aifx data show corpus@3f2a
        aifx data show data.train      what the files are that training reads
        aifx data show --split validation --rows 5
        aifx data show --run main --step 120 --rows 16
        aifx data show --set objective.loss_on=completion --json

    Trained tokens are green and special tokens bold. Without colour, trained tokens are between {+ and +}.
    """
    with terminal(json) as out:
        if name is not None:
            of_rows: dict[str, object] = {"--split": split != "train", "--rows": rows != 2, "--first": first}
            of_rows |= {"--step": step, "--batch": batch is not None, "--run": run, "--set": set_}
            for option in (option for option, given in of_rows.items() if given):
                why = "it chooses rows, and a name shows what a version is"
                raise UsageError(f"{option} cannot be used with a name", why, f"aifx data show {name}")
            print_page(out, name, root)
            return
        if root is not None:
            raise UsageError("--root can only be used with a name", "it is where data sets are", "leave it out")
        from aifx.verbs.data_show import data_show, data_show_batch

        if step is None and batch is None:
            data = data_show(split, rows=rows, first=first, run=run, settings=set_)
            out.result(data)
            _print(out, data)
            return
        if split != "train":
            raise UsageError(f"--split {split} has no steps", "steps take batches of the train split", "leave it out")
        found = data_show_batch(step, batch=batch, rows=rows, first=first, run=run, settings=set_)
        out.result(found)
        _print_batch(out, found)


def _print_batch(out: Output, found: ShownBatch) -> None:
    from aifx.verbs.data_show import ShownRow

    taken = f"step {found.step} takes it" if found.step is not None else "no step takes it"
    out.print(f"training batch {found.batch} of {counted(found.num_rows, 'row')}: {taken}")
    for note in (found.skipped, found.fault):
        if note:
            out.print(note)
    if found.left_out:
        out.print(f"batches that no step takes: {', '.join(map(str, found.left_out))}")
    for row in found.rows:
        out.print("")
        if isinstance(row, ShownRow):
            out.print(f"row {row.row}: {row.tokens:,} tokens, {row.trained:,} trained")
            _print_examples(out, row)
        else:
            out.print(f"row {row.row}")
            _print_values(out, row)


def _print_values(out: Output, row: ShownValues) -> None:
    for name, value in row.fields.items():
        out.print(f"  {name}: {value}")


def _print(out: Output, found: ShownData) -> None:
    from aifx.verbs.data_show import ShownRow

    for row in found.rows:
        if row is not found.rows[0]:
            out.print("")
        place = f": {row.place}" if row.place else ""
        out.print(f"row {row.row} of {found.num_rows:,} of the {found.split} split{place}")
        if not isinstance(row, ShownRow):
            _print_values(out, row)
            continue
        out.print(f"{row.tokens:,} of {found.seq_len:,} tokens, {row.trained:,} trained")
        _print_examples(out, row)


def _print_examples(out: Output, row: ShownRow) -> None:
    from rich.text import Text

    in_colour = out.out.color_system is not None and not out.out.no_color
    for example in row.examples:
        line, was_trained = Text(), False
        for part in example.parts:
            if not in_colour and part.trained != was_trained:
                line.append("{+" if part.trained else "+}")
            was_trained = part.trained
            style = " ".join(name for name, is_on in (("green", part.trained), ("bold", part.special)) if is_on)
            line.append(part.text, style)
        if not in_colour and was_trained:
            line.append("+}")
        out.print(f"\n{example.name}:" if example.name else "")
        out.print(line, soft_wrap=True)


app.command()(add)
app.command()(clean)
app.command()(pii)
app.command()(ls)
app.command()(dedupe)
app.command()(split)
app.command()(decontaminate)
app.command()(verify)
app.command()(compact)
app.command()(make)
app.command()(recipe)
app.command()(join)
app.command()(feedback)
app.command()(classify)
app.command()(expect)
app.command()(mix)
app.command()(profile)
app.command()(diff)
app.command()(lineage)
app.command()(why)
app.command()(query)
app.command()(push)
app.command()(report)
app.command()(index)
app.command()(search)
app.command()(erase)
app.command()(gc)
app.add_typer(label.app, name="label")
app.command("run-tasks", hidden=True)(run_tasks)
