"""A report of `aifx monitor` as a page, and as metrics for Prometheus."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from aifx.core.pages import render
from aifx.core.pages.canvas import Picture, canvas, ticks
from aifx.feedback.monitoring import Monitored

MOST_ROWS = 40
"""Columns in the picture: the largest effects."""


def monitor_page(report: Monitored) -> str:
    """The page: each column's effect beside what chance makes and what counts. It shows no value of a row."""
    return render(
        "aifx.feedback",
        "monitor.html",
        title=f"{report.model}, step {report.step}",
        command=f"aifx monitor {report.model} {report.source}",
        status="failed" if report.drifted or report.breached else "passed",
        word="drifted" if report.drifted else "breached" if report.breached else "no drift",
        report=report,
        picture=_picture(report),
    )


def _picture(report: Monitored) -> Picture:
    """A bar per column in units of the effect from which it counts, which is the line at 1."""
    shown = report.columns[:MOST_ROWS]
    right = max([1.2, *(one.effect / one.least for one in shown)])
    with canvas("drift", height=40 + 22 * len(shown)) as on:
        for row, one in enumerate(shown):
            ratio = one.effect / one.least
            tip = f"{one.column} ({one.of}): {one.effect:.3f}, usual {one.usual:.3f}, counts from {one.least:g}"
            on.bar(row, 0, ratio, right, "C1" if one.drifted else "C0", f"{one.effect:.3f}", tip)
            on.dot(one.usual / one.least, row, f"usual: {one.usual:.3f}", "C2")
        on.axes.axvline(1, color="C3", lw=1.2, ls="--")
        on.rows([one.column for one in shown])
        on.axes.set_xlim(0, right)
        ticks(on.axes.xaxis, MaxNLocator(4), lambda value: f"{value:g}")
        for label, series in (("drifted", 1), ("not drifted", 0), ("95 % of chance stays below", 2)):
            on.key(label, series)
        on.key("counts from here", 3, is_dashed=True)
        return on.picture("Effects", "in units of the effect from which a column counts")


def monitor_metrics(report: Monitored) -> str:
    """The report in Prometheus' text format, such as the textfile collector of node_exporter reads."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    model = report.model

    def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"aifx_monitor_{name}", text, ("model", *labels), registry=registry)

    column = ("column", "of")
    effect = gauge("effect", "Distance of a column from the reference.", column)
    usual = gauge("usual_effect", "Effect that 95 % of divisions by chance stay below.", column)
    drifted = gauge("drifted", "Whether a column drifted.", column)
    for one in report.columns:
        effect.labels(model, one.column, one.of).set(one.effect)
        usual.labels(model, one.column, one.of).set(one.usual)
        drifted.labels(model, one.column, one.of).set(one.drifted)
    if report.performance is not None:
        of = ("metric", "of")
        metric = gauge("metric", "Metric of the predictions, measured by outcomes or estimated without.", of)
        ends = gauge("metric_interval", "Ends of the metric's 95 % interval.", (*of, "end"))
        before = gauge("reference_metric", "Metric of the reference's rows that were held out.", of)
        for each in report.performance.metrics:
            metric.labels(model, each.metric, each.of).set(each.value)
            for end, value in (("low", each.low), ("high", each.high)):
                if value is not None:
                    ends.labels(model, each.metric, each.of, end).set(value)
            if each.reference is not None:
                before.labels(model, each.metric, each.of).set(each.reference)
        breached = gauge("breached", "Whether a metric's whole interval is outside a limit.", ("limit", "of"))
        for limit in report.performance.limits:
            breached.labels(model, limit.expr, limit.of).set(limit.breached)
        gauge("outcomes", "Rows with an outcome.", ()).labels(model).set(report.performance.outcomes)
    gauge("rows", "Rows that were compared.", ()).labels(model).set(report.rows)
    gauge("last_run_timestamp_seconds", "When the report was made.", ()).labels(model).set_to_current_time()
    return generate_latest(registry).decode()
