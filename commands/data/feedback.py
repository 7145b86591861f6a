"""`aifx data feedback`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import RequestOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import StepOptions
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_feedback import FeedbackVersion

AGES = {"d": 86_400, "h": 3600, "min": 60}
OTHERS = {
    "outcomes_doubled": "the same outcome once more",
    "outcomes_early": "known before the first prediction of their key",
    "outcomes_unknown": "of no prediction",
    "outcomes_empty": "without a key or a value",
}


@option_group
def feedback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set to make or to extend.")],
    given: StepOptions,
    predictions: Annotated[
        str,
        typer.Option(
            "--predictions",
            metavar="SCORED",
            help="What aifx score wrote: a folder, or a table's URL. Or records of aifx serve: runs/NAME/records.",
        ),
    ],
    outcomes: Annotated[
        str,
        typer.Option(
            "--outcomes",
            metavar="SOURCE",
            help="File of rows, data set, or URL of a table; with --query, of a database.",
        ),
    ],
    key: Annotated[
        str,
        typer.Option(
            "--key",
            metavar="COLUMN",
            help="Column of SOURCE with the row's key, which the rows have, too, or prediction_id.",
        ),
    ],
    time: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="COLUMN",
            help="Column of SOURCE with the time at which an outcome was known. Needed unless the key is "
            "prediction_id.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="Column of SOURCE with the outcome. By default the only other."),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option("--zone", metavar="ZONE", help="Zone of times that have none, such as Europe/Berlin."),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", metavar="SQL", help="Rows of the database SOURCE that are the outcomes.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="NAME", help="Data set that was scored. By default what SCORED says."),
    ] = None,
    rows_key: Annotated[
        str | None,
        typer.Option(
            "--rows-key", metavar="COLUMN", help="Column by which its rows were scored. By default what SCORED says."
        ),
    ] = None,
    license_: Annotated[
        str,
        typer.Option("--license", metavar="SPDX", help="Licence of outcomes that are in no data set."),
    ] = "unknown",
    request: RequestOption = None,
) -> None:
    """Join predictions with what then happened, into a version to train on.

    Examples:
        aifx data feedback judged --predictions scores --outcomes paid.csv --key order --time paid_at
        aifx data feedback judged --predictions scores --outcomes paid --key prediction_id --label paid
        aifx data feedback judged --predictions postgresql://me@db/shop/scores --outcomes paid.csv --key id --time at

    The version has the rows whose outcome is known, with it and the prediction.
    An outcome belongs to the newest prediction of its key that is not later, or to the one whose id it has.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_feedback import data_feedback

        made = data_feedback(
            name,
            predictions=predictions,
            outcomes=outcomes,
            key=key,
            time=time,
            label=label,
            zone=zone,
            query=query,
            rows=rows,
            rows_key=rows_key,
            license=license_,
            request=request,
            **given.of_step(),
        )
        out.result(made)
        _print(out, made)


def _print(out: Output, made: FeedbackVersion) -> None:
    there = "" if made.is_new else ", which was there already"
    if made.is_repeated:
        there = ", as an earlier call with this request id reported"
    out.print(f"{made.reference}: {counted(made.rows, 'row')}, {readable_bytes(made.size_bytes)}{there}")
    facts = made.facts
    ages = _counts({age: count for age, count in facts["missing_by_age"].items() if count})
    rows = [
        ("with an outcome", f"{facts['joined']:,}", ""),
        ("missing", f"{facts['missing']:,}", f"by age, up to: {ages}" if ages else ""),
        ("conflict", f"{facts['conflicts']:,}", "outcomes contradict each other" if facts["conflicts"] else ""),
    ]
    out.table([f"scored rows: {facts['scored_rows']:,}", "rows", ""], rows, right=["rows"])
    if facts["late_s"] is not None:
        late = ", ".join(f"{name} {_age(value)}" for name, value in facts["late_s"].items())
        out.print(f"known after the prediction: {late}")
    for fact, what in OTHERS.items():
        if facts[fact]:
            out.print(f"{counted(facts[fact], 'outcome')} of {facts['outcomes']:,}: {what}")
    if facts["records_left_out"]:
        out.print(f"records left out: {_counts(facts['records_left_out'])}")
    if facts["predictions_without_row"]:
        out.print(f"{counted(facts['predictions_without_row'], 'prediction')} of rows that are not there")
    _print_metrics(out, facts)


def _print_metrics(out: Output, facts: Mapping[str, Any]) -> None:
    for one in facts["metrics"]:
        rows = counted(one["rows"], "row")
        out.print(f"{one['metric']}: {one['value']:.4g} of {rows}, 95 % interval {_interval(one)}")
    if not facts["metrics"]:
        out.log("no metric: SCORED has neither labels nor numbers that outcomes can be compared with")
        return
    name = facts["metrics"][0]["metric"]
    if len(facts["periods"]) > 1:
        found = [
            (part["start"], f"{part['scored']:,}", f"{part['joined']:,}", *_cells(part["metrics"], name))
            for part in facts["periods"]
        ]
        length = 16 if facts["period"] == "hour" else 10
        head = [f"scored, {facts['period']} of", "rows", "with outcome", name, "95 % interval"]
        out.table(head, [(start[:length], *rest) for start, *rest in found], right=head[1:])
    if len(facts["models"]) > 1:
        head = ["model", "with outcome", name, "95 % interval"]
        models = [(one["model"][:12], f"{one['rows']:,}", *_cells(one["metrics"], name)) for one in facts["models"]]
        out.table(head, models, right=head[1:])


def _cells(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[str | None, str | None]:
    found = next((one for one in metrics if one["metric"] == name), None)
    return (None, None) if found is None else (f"{found['value']:.4g}", _interval(found))


def _interval(one: Mapping[str, Any]) -> str:
    return "unknown" if one["low"] is None else f"{one['low']:.4g} to {one['high']:.4g}"


def _counts(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.items())


def _age(seconds: float) -> str:
    """ "2.1 d"."""
    unit, size = next(((unit, size) for unit, size in AGES.items() if seconds >= size), ("s", 1))
    return f"{seconds / size:.3g} {unit}"
