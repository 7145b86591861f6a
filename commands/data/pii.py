"""`aifx data pii`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, find_catalog, names_of
from aifx.core.errors import ExitCode, UsageError
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.curation.pii.reports import PiiReport

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
        from aifx.curation.execution import execute
        from aifx.curation.pii.detector import KINDS, make_detector
        from aifx.curation.pii.reports import report_made, search
        from aifx.curation.pii.steps import FindPii, RemovePii, text_columns

        _check_options(mask, drop, output, given.on)
        wanted = names_of(kinds, "--kinds", "leave it out") if kinds is not None else KINDS
        detector = make_detector(wanted, names_of(region, "--region", "leave it out"))
        catalog, _ = find_catalog(given.root)
        limits = given.limits
        runner = given.runner(catalog)
        version = catalog.open(name)
        text_columns(version.manifest)
        if mask or drop:
            step = RemovePii((version,), detector, "mask" if mask else "drop")
            report = report_made(version, execute(step, version.manifest.name, catalog, limits, runner))
        else:
            report = search(FindPii((version,), detector), limits, spans, output)
        out.document(report)
        _print(out, report, drop)
        if report.made is None and report.rows_found:
            out.log(
                f"{report.rows_found:,} of {counted(report.rows, 'row')} have personal data: "
                "--mask or --drop removes it"
            )
            raise SystemExit(ExitCode.VERDICT)


def _check_options(mask: bool, drop: bool, output: Path | None, on: str) -> None:
    if mask and drop:
        raise UsageError(
            "--mask and --drop cannot be used together", "a dropped row has no mask", "leave one of them out"
        )
    if output is not None and (mask or drop):
        why = "places are those of the version that is searched"
        raise UsageError("--output cannot be used with --mask or --drop", why, "run it first without them")
    if on != "local" and not (mask or drop):
        raise UsageError("--on slurm requires --mask or --drop", "without them no version is made", "leave it out")


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
