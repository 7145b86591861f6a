"""`aifx eval`: held-out metrics of a checkpoint, compared with gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from aifx.commands.console.jobs import report_lost
from aifx.commands.console.options import JsonOption, ModelOption, RunOption, SetOption, StepOption, TrustCodeOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.limits import check_limits
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.evaluation import (
        BetterLast,
        ColumnSlices,
        Comparison,
        DatasetReport,
        DatasetReports,
        Evaluation,
        FirstModel,
        ShadowReport,
    )

Split: TypeAlias = Literal["test", "validation", "train"]

SplitOption = Annotated[
    Split | None,
    typer.Option("--split", metavar="test|validation|train", help="Split to measure. By default eval.split."),
]

DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="PATH", help="Measure a file or folder instead of a split. Can be repeated."),
]

BenchmarkOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--benchmark", metavar="FILE", help="Ask a language model the questions of a file instead. Can be repeated."
    ),
]

ChatOption = Annotated[
    bool, typer.Option("--chat", help="With --benchmark: ask each question as a user's message in a chat.")
]

GateOption = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar='"NAME OP NUMBER"', help="Add a condition to those of eval.gates. Can be repeated."),
]


HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write the report to FILE, as a page with the worst errors."),
]


AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="RUN[:STEP]|MODEL", help="Compare with another run or NAME@ALIAS on the same rows instead."
    ),
]

AllowFirstOption = Annotated[
    bool,
    typer.Option("--allow-first", help="With --against NAME@ALIAS: pass if the alias means no version yet."),
]

MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar='"min|max NAME"',
        help="With --against or --shadow: what decides. By default checkpoint.best_by.",
    ),
]

MarginOption = Annotated[
    float | None,
    typer.Option(
        "--margin",
        metavar="NUMBER",
        min=0.0,
        help="With --against or --shadow: loss that still counts as not worse. By default eval.margin.",
    ),
]

LookOption = Annotated[
    int,
    typer.Option(
        "--look",
        metavar="N",
        min=1,
        help="With --against or --shadow: how many comparisons there were on this data, with this one. A registry "
        "counts those of its versions.",
    ),
]


ShadowOption = Annotated[
    Path | None,
    typer.Option(
        "--shadow", metavar="PATH", help="Compare the answers that aifx serve --shadow recorded in a file or folder."
    ),
]

LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="With --shadow: outcomes by the column id, that of a request."),
]

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="COLUMN",
        help="With --shadow: column of the outcome in --labels or rows. By default target.",
    ),
]


def eval_(
    run: RunOption = None,
    model: ModelOption = None,
    trust_code: TrustCodeOption = None,
    step: StepOption = None,
    split: SplitOption = None,
    data: DataOption = None,
    benchmark: BenchmarkOption = None,
    chat: ChatOption = False,
    gate: GateOption = None,
    set_: SetOption = None,
    html: HtmlOption = None,
    against: AgainstOption = None,
    allow_first: AllowFirstOption = False,
    metric: MetricOption = None,
    margin: MarginOption = None,
    look: LookOption = 1,
    shadow: ShadowOption = None,
    labels: LabelsOption = None,
    target: TargetOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a checkpoint on held-out data and compare it with its gates. Exits 1 if one fails.

    Examples:
        aifx eval
        aifx eval --run main --step last --gate "bits_per_byte <= 2.1"
        aifx eval --split validation --json
        aifx eval --gate "per_class.Shirt.recall >= 0.6"
        aifx eval --data june.npz --data july.npz
        aifx eval --html report.html
        aifx eval --model fraud@production --data june.csv
        aifx eval --benchmark arc.jsonl --gate "acc_norm_low >= 0.3"
        aifx eval --run new --against main --margin 0.01
        aifx eval --shadow runs/main/shadow.jsonl --labels outcomes.csv

    aifx also keeps the report in the run, or beside the pulled version, in eval/<step>.json. With --data, it reports
    each of them separately and does not read the data that the run was trained on.

    With --against, both models answer the same rows, and a bootstrap over groups of rows decides. It exits 1 unless the
    first is better, or not worse than the margin. With --allow-first, the first version of an alias passes, since there
    is nothing to compare it with. With --shadow, the second model of the server is compared with the
    first in the same way, if outcomes of 30 requests are known.
    """
    with terminal(json) as out:
        check_limits()
        from aifx.verbs.evaluation import compare_models, compare_shadow, evaluate, evaluate_benchmark
        from aifx.verbs.jobs import is_first_of_job
        from aifx.verbs.models import choose_model, choose_other

        _check_benchmark(benchmark, {"--split": split, "--data": data, "--html": html})
        if chat and not benchmark:
            raise UsageError(
                "--chat requires --benchmark", "it is how questions are asked", "aifx eval --benchmark FILE"
            )
        if shadow is not None:
            others: dict[str, Any] = {"--run": run, "--model": model, "--step": step, "--split": split, "--data": data}
            others |= {"--benchmark": benchmark, "--gate": gate, "--set": set_, "--html": html, "--against": against}
            others["--allow-first"] = allow_first or None
            _check_shadow(shadow, {**others, "--trust-code": trust_code})
            report_of_both = compare_shadow(
                shadow, labels=labels, target=target or "target", metric=metric, margin=margin, look=look
            )
            out.result(report_of_both)
            _show_shadow(out, report_of_both)
            return
        if given := [option for option, value in {"--labels": labels, "--target": target}.items() if value]:
            why = "it is about recorded answers"
            raise UsageError(f"{given[0]} requires --shadow", why, "aifx eval --shadow runs/main/shadow.jsonl")
        chosen, gates = choose_model(run, model), gate or ()
        how: dict[str, Any] = {"step": step, "settings": set_, "trust_code": trust_code}
        compared = {"--metric": metric, "--margin": margin, "--look": look if look > 1 else None}
        compared["--allow-first"] = allow_first or None
        if against is None and (given := [option for option, value in compared.items() if value is not None]):
            raise UsageError(f"{given[0]} requires --against", "it is about two models", "aifx eval --against RUN")
        if against is not None:
            _check_against({"--benchmark": benchmark, "--gate": gate, "--html": html, "--data": (data or [])[1:]})
            other, other_step = choose_other(against)
            found = compare_models(
                chosen,
                other,
                split=split,
                data=data[0] if data else None,
                metric=metric,
                margin=margin,
                look=look,
                against_step=other_step,
                allow_first=allow_first,
                **how,
            )
            out.result(found)
            _show_comparison(out, found)
            return
        lost = report_lost(out)
        report: Evaluation | DatasetReports
        if benchmark:
            report = evaluate_benchmark(chosen, *benchmark, chat=chat, gates=gates, on_lost=lost, **how)
        else:
            report = evaluate(chosen, split=split, data=data or (), html=html, gates=gates, on_lost=lost, **how)
        if not is_first_of_job():
            raise SystemExit(report.exit_code)
        out.result(report)
        _show(out, report)
        if html is not None:
            out.log(f"written to {html}")


def _check_benchmark(benchmark: Sequence[Path] | None, others: Mapping[str, object]) -> None:
    if benchmark and (given := [option for option, value in others.items() if value]):
        hint = f"aifx eval --benchmark {benchmark[0]}"
        raise UsageError(f"{given[0]} cannot be used with --benchmark", "it has questions of its own", hint)


def _check_against(others: Mapping[str, object]) -> None:
    if given := [option for option, value in others.items() if value]:
        what = f"{given[0]} cannot be used with --against" if given[0] != "--data" else "--against takes one --data"
        raise UsageError(what, "a comparison has one verdict", "aifx eval --against RUN")


def _check_shadow(path: Path, others: Mapping[str, object]) -> None:
    if given := [option for option, value in others.items() if value is not None]:
        why = "it compares answers that were recorded"
        raise UsageError(f"{given[0]} cannot be used with --shadow", why, f"aifx eval --shadow {path}")


def _show_shadow(out: Output, found: ShadowReport) -> None:
    """Print how often the models agree, what each needed, and the metrics of answers whose outcome is known."""
    first, second, same = found.served, found.shadow, found.agreement
    names = [f"{side.model}, step {side.step}" for side in (first, second)]
    out.print(f"{names[1]}, compared with {names[0]}, which served: {counted(found.requests, 'request')}")
    if found.failed:
        out.print(f"{second.model} did not answer {found.failed} more:")
        for reason, count in found.reasons.items():
            out.print(f"  {count} times: {reason}")
    if found.others:
        out.print(f"{found.others} records of other models were left out")
    rows = [("tokens of an answer", first.tokens, second.tokens), ("seconds, half below", first.p50_s, second.p50_s)]
    rows += [("seconds, 90 % below", first.p90_s, second.p90_s), ("seconds, 99 % below", first.p99_s, second.p99_s)]
    rows += [(name, of.served, of.shadow) for name, of in found.metrics.items()]
    shown = [(name, _number(one), _number(two)) for name, one, two in rows if one is not None and two is not None]
    out.table(["", *names], shown, right=names)
    out.print(f"\nthe same: {same.share:.1%} of {counted(found.answers, 'answer')} ({same.low:.1%} to {same.high:.1%})")
    if found.same_beginning is not None:
        out.print(f"the same from the beginning: {found.same_beginning:.1%} of a text")
    if found.mean_difference is not None:
        out.print(f"numbers differ by {found.mean_difference:.4g} on average, {found.largest_difference:.4g} at most")
    if (compared := found.comparison) is not None:
        level = f"{1 - compared.alpha:.2%} interval {compared.low:+.4g} to {compared.high:+.4g}"
        requests = f"{counted(compared.groups, 'request')}, look {compared.look}"
        out.print(f"improvement of {compared.metric}: {compared.difference:+.4g}, {level}, {requests}")
        out.print(f"\nverdict: {found.explanation}")
    elif found.labelled:
        out.print(found.explanation)


def _show_comparison(out: Output, found: Comparison | FirstModel) -> None:
    """Print the verdict, and below it what it is formed of."""
    if found.verdict == "first":
        out.print(found.explanation)
        return
    names = [f"{side.run}, step {side.step}" for side in (found.subject, found.incumbent)]
    out.print(f"{names[0]}, compared with {names[1]}, on the {found.data_name}")
    level = f"{1 - found.alpha:.2%} interval"
    out.table(
        ["", "value"],
        [
            (f"{found.metric} of {names[0]}", _number(found.value)),
            (f"{found.metric} of {names[1]}", _number(found.against_value)),
            ("better by", f"{found.difference:+.4g}"),
            (level, f"{found.low:+.4g} to {found.high:+.4g}"),
            (f"groups ({found.group})", f"{found.groups:,}"),
            ("look", str(found.look)),
        ],
        right=["value"],
    )
    for key, (own, other) in found.different_settings.items():
        out.print(f"measured differently: {key} is {own!r} for {names[0]}, {other!r} for {names[1]}")
    for column, slices in found.slices.items():
        shown = [
            (value, f"{of['groups']:,}", f"{of['difference']:+.4g}", f"{of['low']:+.4g} to {of['high']:+.4g}")
            for value, of in slices.items()
        ]
        out.print("")
        headings = ["groups", "better by", "95 % interval"]
        out.table([column, *headings], shown, right=headings)
    out.print(f"\nverdict: {found.explanation}")


def _show(out: Output, report: Evaluation | DatasetReports) -> None:
    matrices = "" if report.quantize == "none" else f", matrices as {report.quantize}"
    parts: Sequence[tuple[str, Evaluation | DatasetReport]] = report.parts
    for number, (data, part) in enumerate(parts):
        if number:
            out.print("")
        title = f"run {report.run}" if report.model is None else f"model {report.run} ({report.model[:12]})"
        out.print(f"{title}, step {report.step}, {data}{matrices}")
        _show_part(out, part)
    if report.better_last is not None:
        out.print(f"\n{better_last_text(report.run, report.better_last)}")


def _show_part(out: Output, part: Evaluation | DatasetReport) -> None:
    numbers = {name: value for name, value in part.metrics.items() if isinstance(value, (int, float))}
    columns = ["model", *part.baselines] if part.baselines else ["value"]
    rows = [(name, _number(value), *_beside(name, value, part.baselines)) for name, value in numbers.items()]
    out.table(["metric", *columns], rows, right=columns)
    if isinstance(classes := part.metrics.get("per_class"), Mapping):
        _show_classes(out, classes, part.metrics.get("confusion"))
    for column, slices in part.slices.items():
        _show_slices(out, column, slices)
    if part.gates:
        out.print("")
        verdicts = [(g.expr, _number(g.value), "passed" if g.passed else "FAILED") for g in part.gates]
        out.table(["gate", "value", "verdict"], verdicts, right=["value"])


def _show_slices(out: Output, column: str, slices: ColumnSlices) -> None:
    """The metrics of the slices of a column with their intervals, and the slices that have too few rows for one."""
    rows = [
        (value, f"{of['groups']:,}", name, *(_number(number) for number in (m["value"], m["low"], m["high"])))
        for value, of in slices["values"].items()
        for name, m in of["metrics"].items()
    ]
    if rows:
        out.print("")
        out.table([column, "groups", "metric", "value", "low", "high"], rows, right=["groups", "value", "low", "high"])
        out.print("")
        extremes = [(name, _number(worst), _number(slices["gap"][name])) for name, worst in slices["worst"].items()]
        out.table([f"{column}: metric", "worst", "gap"], extremes, right=["worst", "gap"])
    if few := slices["too_few"]:
        out.print(f"{column}: too few for an interval: {', '.join(f'{value} ({n})' for value, n in few.items())}")


def _beside(name: str, value: float, baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metric of each baseline; counts are those of the model."""
    is_count = isinstance(value, int)
    return ["" if is_count or name not in metrics else _number(metrics[name]) for metrics in baselines.values()]


def better_last_text(run: str, better: BetterLast) -> str:
    """The remark that the last checkpoint beats the best one."""
    direction, _, metric = better.best_by.partition(" ")
    values = f"{_number(better.last_value)} at step {better.last_step}, {_number(better.best_value)} at step"
    return (
        f"the last checkpoint beats the best one by {metric}:\n"
        f"{values} {better.best_step}, on the validation split\n"
        f"measure it: aifx eval --run {run} --step last\n"
        f'in new runs: aifx train --set checkpoint.best_by="{direction} {metric}"'
    )


def _show_classes(out: Output, classes: Mapping[str, Mapping[str, float]], confusion: Any) -> None:
    columns = list(next(iter(classes.values()), {}))
    out.print("")
    rows = [(name, *(_number(report[column]) for column in columns)) for name, report in classes.items()]
    out.table(["class", *columns], rows, right=columns)
    if isinstance(confusion, list):
        out.print("\nconfusion: a row is a class, a column what it was predicted as")
        out.table(
            ["", *classes], [(name, *row) for name, row in zip(classes, confusion, strict=True)], right=list(classes)
        )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
