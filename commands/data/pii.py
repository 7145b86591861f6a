"""`aifx data pii`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, names_of
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_steps import PiiReport

KINDS_HELP = (
    "Kinds to look for: email, phone, credit_card, iban, national_id, ip_address, mac_address, api_key, private_key, "
    "jwt, crypto_wallet, and name with the extra pii-names. By default all except name."
)


@option_group
def pii(
    name: DatasetArgument,
    given: StepOptions,
    mask: Annotated[bool, typer.Option("--mask", help="Make a version with [EMAIL] and so on instead.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Make a version without the rows that have any.")] = False,
    kinds: Annotated[str | None, typer.Option("--kinds", metavar="KIND,…", help=KINDS_HELP)] = None,
    region: Annotated[
        str,
        typer.Option("--region", metavar="CODE,…", help="Countries whose telephone numbers are found without '+'."),
    ] = "US",
    spans: Annotated[int, typer.Option("--spans", metavar="N", min=0, help="List the first N places.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write all places to FILE, as lines of JSON.")
    ] = None,
) -> None:
    """Find personal data and secrets in texts; mask them, or drop their rows.

    Examples:
        aifx data pii corpus
        aifx data pii corpus --kinds email,phone --region US,DE --output places.jsonl
        aifx data pii corpus --mask
        aifx data pii corpus --drop --json

    Exits 1 if something is found and neither --mask nor --drop is given. The data itself is never printed or written.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_pii

        report = data_pii(
            name,
            mask=mask,
            drop=drop,
            kinds=names_of(kinds, "--kinds", "leave it out") if kinds is not None else None,
            region=names_of(region, "--region", "leave it out"),
            spans=spans,
            output=output,
            **given.of_step(),
        )
        out.result(report)
        _print(out, report, drop)


def _print(out: Output, report: PiiReport, is_drop: bool) -> None:
    for column in report.unsearched:
        out.log(f"the column {column!r} is not searched: it does not hold plain texts")
    if report.made is not None:
        done = "dropped" if is_drop else "masked"
        out.print(f"{report.made.reference}: {counted(report.made.rows, 'row')}, {report.rows_found:,} {done}")
    if not report.kinds:
        out.print(f"{report.reference}: nothing found in {counted(report.rows, 'row')}")
        return
    rows = [
        (
            kind.kind,
            f"{kind.spans:,}",
            f"{kind.rows:,}",
            ", ".join(f"{check} {count:,}" for check, count in kind.checks.items()),
            "  ".join(kind.shapes),
        )
        for kind in report.kinds
    ]
    out.table(["kind", "places", "rows", "checks", "shapes"], rows, right=["places", "rows"])
    for span in report.spans:
        out.print(f"{span.row} {span.column} {span.start}-{span.end}: {span.kind} ({span.check})")
