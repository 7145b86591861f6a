"""A sweep as a page: its settings beside the spread over seeds, what each key matters, and the values of each key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from aifx.config.best_by import parse_best_by
from aifx.config.toml import literal
from aifx.core.pages import render
from aifx.core.pages.canvas import FAINT, INK, LINE, Canvas, Picture, canvas, ticks
from aifx.sweeps.ranking import RankedSetting, SweepReport, SweepTrial

ROW = 22
MOST_ROWS = 20
MOST_KEYS = 8
LOG_SPAN = 20
"""Least ratio of the largest to the smallest value for a logarithmic axis."""


def report_page(report: SweepReport) -> str:
    """The page of a sweep."""
    keys = list(dict.fromkeys(key for one in report.settings for key in one.values))
    drawn = [_ranking(report), _importance(report), *(_by_key(report, key) for key in keys[:MOST_KEYS])]
    return render(
        "aifx.sweeps",
        "sweep.html",
        title=f"Sweep {report.sweep}",
        command=f"aifx sweep show {report.sweep}",
        report=report,
        keys=keys,
        pictures=[picture for picture in drawn if picture is not None],
        literal=literal,
        number=number,
    )


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def named(setting: RankedSetting) -> str:
    """`learning_rate 0.03, kind muon`."""
    return ", ".join(f"{key.rpartition('.')[2]} {literal(value)}" for key, value in setting.values.items()) or "all"


def _ranking(report: SweepReport) -> Picture | None:
    """A row per setting, the best first: its trials, their mean, and how far a lead over it would be undecided."""
    ranked = [one for one in report.settings if one.rank is not None and one.value is not None]
    rows = ranked[:MOST_ROWS]
    if not rows:
        return None
    best, sign = rows[0].value or 0.0, -1 if parse_best_by(report.best_by).direction == "max" else 1
    with canvas("ranking", height=40 + ROW * len(rows)) as on:
        on.axes.axvline(best, color=LINE, lw=1)
        for row, one in enumerate(rows):
            if one.margin is not None:
                (line,) = on.axes.plot([best, best + sign * one.margin], [row] * 2, color=FAINT, lw=1.5, ls=(0, (3, 2)))
                on.tip(line, f"a difference up to {number(one.margin)} is undecided")
            _trials(on, [(trial.value, row) for trial in one.trials], one.trials)
            (mean,) = on.axes.plot(one.value, row, "|", color=INK, markersize=14, markeredgewidth=2, zorder=3)
            on.tip(mean, f"{named(one)}: {number(one.value)}")
        on.rows([named(one) for one in rows])
        on.axes.set_ylim(len(rows) - 0.4, -0.6)
        ticks(on.axes.xaxis, MaxNLocator(4), lambda value: f"{value:g}")
        on.key("trial", 0)
        on.key("mean")
        on.key("undecided within", is_dashed=True)
        hidden = f"; {len(ranked) - len(rows)} more are in the table" if len(ranked) > len(rows) else ""
        return on.picture("Settings", f"{report.best_by}{hidden}")


def _trials(on: Canvas, places: Sequence[tuple[float | None, float | None]], trials: Sequence[SweepTrial]) -> None:
    for (x, y), trial in zip(places, trials, strict=True):
        if x is not None and y is not None:
            style: dict[str, Any] = {"markerfacecolor": "none"} if trial.status == "pruned" else {}
            tip = f"{trial.run}: {number(trial.value)} at step {trial.step}, {trial.status.replace('_', ' ')}"
            on.dot(x, y, tip, "C0", markersize=4, **style)


def _importance(report: SweepReport) -> Picture | None:
    known = [(one.key, one.fraction) for one in report.importance if one.fraction is not None]
    if len(known) < 2:
        return None
    with canvas("importance", height=34 + ROW * len(known)) as on:
        for row, (key, fraction) in enumerate(known):
            on.bar(row, 0.0, fraction, 1.0, "C0", f"{fraction:.0%}", f"{key}: {fraction:.1%}")
        on.rows([key for key, _ in known])
        on.axes.set_ylim(len(known) - 0.4, -0.6)
        on.axes.set_xlim(0, 1)
        ticks(on.axes.xaxis, MaxNLocator(4), lambda value: f"{value:.0%}")
        return on.picture("Importance", "share of the variance between trials, by rank")


def _by_key(report: SweepReport, key: str) -> Picture | None:
    """The values that trials reached, over the values of a key."""
    settings = [one for one in report.settings if any(trial.value is not None for trial in one.trials)]
    given = [one.values[key] for one in settings]
    distinct = sorted({literal(value) for value in given})
    if len(distinct) < 2:
        return None
    is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
    with canvas(f"key-{key}") as on:
        for one, value in zip(settings, given, strict=True):
            x = value if is_number else distinct.index(literal(value))
            _trials(on, [(x, trial.value) for trial in one.trials], one.trials)
        if not is_number:
            ticks(on.axes.xaxis, FixedLocator(list(range(len(distinct)))), lambda at: distinct[round(at)])
            on.axes.set_xlim(-0.5, len(distinct) - 0.5)
        elif min(given) > 0 and max(given) / min(given) >= LOG_SPAN:
            on.axes.set_xscale("log")
            ticks(on.axes.xaxis, LogLocator(10, numticks=6), lambda value: f"{value:g}")
        else:
            ticks(on.axes.xaxis, MaxNLocator(5), lambda value: f"{value:g}")
        ticks(on.axes.yaxis, MaxNLocator(5), lambda value: f"{value:g}")
        return on.picture(key, report.best_by)
