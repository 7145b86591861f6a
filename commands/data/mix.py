"""`aifx data mix`."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted


def mix(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set to make.")],
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SET:WEIGHT…", help="Data sets, each with its share of the training tokens; they need not sum to 1."
        ),
    ],
    epochs: Annotated[
        list[str] | None,
        typer.Option(
            "--epochs",
            metavar="[SET:]N",
            help="Most times that training reads each row of SET, or of all sets. Repeatable. By default no bound.",
        ),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Mix data sets of text into one, which training streams without a copy of their rows.

    Examples:
        aifx data mix blend web:0.7 books:0.3
        aifx data mix blend web@3f2a:7 books:3 --epochs books:4
        aifx train --set data.dataset=blend

    When training has read a set as often as --epochs allows, it reads the others in proportion to their weights.
    """
    with terminal(json) as out:
        from aifx.verbs.data_steps import data_mix

        made = data_mix(name, *sets, epochs=epochs or (), root=root)
        out.result(made)
        there = "" if made.is_new else ", which was there already"
        size = readable_bytes(made.size_bytes)
        out.print(f"{made.reference}: {counted(made.rows, 'row')}, {size}, not copied{there}")
        rows = [
            (
                one.reference,
                f"{one.share:.1%}",
                "-" if one.epochs is None else f"{one.epochs:g}",
                f"{one.rows:,}",
                readable_bytes(one.size_bytes),
            )
            for one in made.mixed
        ]
        out.table(["mixed", "share", "epochs", "rows", "size"], rows, right=["share", "epochs", "rows", "size"])
