"""`aifx data clean`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, find_catalog, names_of, print_made
from aifx.core.errors import ExitCode, UsageError


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
        from aifx.curation.cleaning import Clean, check_text, dropped_share
        from aifx.curation.execution import execute
        from aifx.curation.rules import load_rules

        catalog, _ = find_catalog(given.root)
        kept = _languages(languages)
        chosen = load_rules([] if rules == "none" else names_of(rules, "--rules", "--rules none"), Path.cwd())
        limits = given.limits
        runner = given.runner(catalog)
        parent = catalog.open(name)
        check_text(parent.manifest)
        step = Clean((parent,), chosen, kept, unicode, repair)
        if kept is None and (bound := [rule.id for rule in chosen if rule.languages]):
            out.log(f"--languages none: {', '.join(bound)} judges no row, because it is for some languages")
        made = execute(
            step,
            parent.manifest.name,
            catalog,
            limits,
            runner,
            accepts=lambda manifest: dropped_share(manifest) <= max_dropped,
        )
        print_made(out, made)
        if changed := made.version.manifest.facts["rows_changed"]:
            out.print(f"{changed:,} of its rows have another text than before")
        if not made.is_accepted:
            share = dropped_share(made.version.manifest)
            out.log(
                f"{share:.1%} of the rows are dropped, more than --max-dropped {max_dropped:g}: "
                f"{parent.manifest.name} still means the version before"
            )
            raise SystemExit(ExitCode.VERDICT)


def _languages(text: str) -> tuple[str, ...] | None:
    """The languages to keep: all if empty, None to identify none. Raises UsageError for an unknown code."""
    if text in ("all", "none"):
        return () if text == "all" else None
    from aifx.curation.languages import code_of, known_languages

    codes = names_of(text, "--languages", "--languages none")
    known = known_languages()
    for code in codes:
        if code not in known:
            meant = code_of(code)
            why = f"did you mean {meant!r}?" if meant in known else "languages have codes of ISO 639, such as en, de"
            raise UsageError(f"--languages: no language {code!r}", why, "--languages en,de")
    return tuple(dict.fromkeys(codes))
