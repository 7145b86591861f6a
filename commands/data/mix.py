"""`aifx data mix`."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import RootOption, find_catalog
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
        from aifx.core.json_files import readable_bytes
        from aifx.curation.execution import execute
        from aifx.curation.mix import mix_of, parse_sets
        from aifx.curation.reports import made_version
        from aifx.curation.step import Limits

        asked = parse_sets(sets, epochs or ())
        catalog, _ = find_catalog(root)
        step = mix_of(asked, catalog)
        made = execute(step, name, catalog, Limits(1 << 30, 1))
        found = made_version(made)
        out.document(found)
        size, there = found.facts["mixed_bytes"], "" if found.is_new else ", which was there already"
        out.print(
            f"{found.reference}: {counted(found.facts['mixed_rows'], 'row')}, {readable_bytes(size)}, not copied{there}"
        )
        whole = sum(step.weights)
        rows = [
            (
                parent.reference,
                f"{weight / whole:.1%}",
                "-" if most is None else f"{most:g}",
                f"{parent.manifest.rows:,}",
                readable_bytes(parent.manifest.bytes),
            )
            for parent, weight, most in zip(step.parents, step.weights, step.epochs, strict=True)
        ]
        out.table(["mixed", "share", "epochs", "rows", "size"], rows, right=["share", "epochs", "rows", "size"])
