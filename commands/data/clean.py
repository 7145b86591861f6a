"""`aifx data clean`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, names_of, print_made


@option_group
def clean(
    name: DatasetArgument,
    given: StepOptions,
    rules: Annotated[
        str,
        typer.Option(
            "--rules",
            metavar="SET,…",
            help="Rules to apply: gopher, c4, fineweb, paths to .toml files, or none.",
        ),
    ] = "gopher",
    languages: Annotated[
        str,
        typer.Option(
            "--languages",
            metavar="CODE,…|all|none",
            help="Keep rows in these languages, such as en,de. 'none' does not identify languages.",
        ),
    ] = "all",
    unicode: Annotated[
        Literal["NFC", "NFKC", "none"],
        typer.Option("--unicode", metavar="NFC|NFKC|none", help="Unicode form of the texts."),
    ] = "NFC",
    repair: Annotated[
        bool,
        typer.Option("--repair/--no-repair", help="Repair wrongly decoded text, remove control characters."),
    ] = True,
    max_dropped: Annotated[
        float,
        typer.Option(
            "--max-dropped", metavar="SHARE", min=0.0, max=1.0, help="Exit 1 if a larger share of the rows is dropped."
        ),
    ] = 0.5,
) -> None:
    """Repair texts, and drop rows by language, length and repetition.

    Examples:
        aifx data clean corpus
        aifx data clean corpus --languages en,de --rules gopher,fineweb
        aifx data clean corpus@3f2a --rules none --languages none
        aifx data clean corpus --rules gopher,rules.toml --max-dropped 0.2 --json

    Makes a new version. Exits 1 if more than --max-dropped is dropped: then NAME still means the version before.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_clean

        made = data_clean(
            name,
            rules=[] if rules == "none" else names_of(rules, "--rules", "--rules none"),
            languages=_languages(languages),
            unicode=unicode,
            repair=repair,
            max_dropped=max_dropped,
            **given.of_step(),
        )
        print_made(out, made)
        if changed := made.facts["rows_changed"]:
            out.print(f"{changed:,} of its rows have another text than before")


def _languages(text: str) -> list[str] | None:
    """The languages to keep: all if empty, None to identify none."""
    if text in ("all", "none"):
        return [] if text == "all" else None
    return names_of(text, "--languages", "--languages none")
