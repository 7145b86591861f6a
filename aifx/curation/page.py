"""A version of a data set as a page that can be mailed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from matplotlib.ticker import FixedLocator, MaxNLocator

from aifx.core.json_files import readable_bytes
from aifx.core.pages import render
from aifx.core.pages.canvas import CARD, Picture, canvas, ticks
from aifx.core.plurals import counted
from aifx.curation.dataset_report import EXAMPLE_CHARACTERS, DatasetReport
from aifx.curation.history import settings_text
from aifx.curation.profile import EDGES, Histogram, Lengths, most_frequent

ROW = 22
MOST_BARS = 12
MOST_COLUMNS = 6
UNITS = {
    "characters": ("Length of the texts", "in characters"),
    "words": ("Words of the texts", "in words"),
    "messages": ("Length of the chats", "in messages"),
    "bytes": ("Size of the pictures", "in bytes"),
}


def dataset_page(report: DatasetReport) -> str:
    """The page of a version."""
    return render(
        "aifx.curation",
        "dataset.html",
        title=report.reference,
        command=f"aifx data report {report.reference}",
        report=report,
        tiles=dict(_tiles(report)),
        pictures=list(_pictures(report)),
        settings=settings_text,
        size=readable_bytes,
        cut=lambda text: text if len(text) < EXAMPLE_CHARACTERS else f"{text}…",
    )


def _tiles(report: DatasetReport) -> Iterator[tuple[str, str]]:
    yield "rows", f"{report.rows:,}"
    yield "on disk", readable_bytes(report.size_bytes)
    yield "sources" if report.num_sources != 1 else "source", f"{report.num_sources:,}"
    dropped = sum(sum(step.dropped_by.values()) for step in report.steps)
    yield "rows dropped by all steps", f"{dropped:,}"
    if report.quarantined:
        yield "rows that could not be read", f"{report.quarantined:,}"
    if report.duplicates.distinct_texts is not None:
        about = "about " if report.duplicates.is_estimate else ""
        yield "distinct texts", f"{about}{report.duplicates.distinct_texts:,}"
    if report.personal:
        yield "kinds of personal data found", f"{len(report.personal):,}"


def _pictures(report: DatasetReport) -> Iterator[Picture]:
    if len(report.steps) > 1:
        rows = {f"{step.step} {step.reference.partition('@')[2][:4]}": step.rows for step in report.steps}
        yield _bars("steps", rows, "Rows after each step", "from the sources to this version")
    for unit, lengths in report.profile.lengths.items():
        title, caption = UNITS[unit]
        before = report.parent_profile.lengths.get(unit) if report.parent_profile is not None else None
        if lengths.rows:
            yield _lengths(unit, lengths, before, title, f"{caption}, of {counted(lengths.rows, 'row')}")
    rules = sum((Counter(step.dropped_by) for step in report.steps), Counter[str]())
    if rules:
        yield _bars("rules", most_frequent(rules, MOST_BARS), "Dropped rows", f"by rule{_rest(rules)}")
    for name, title in (("language", "Languages"), ("label", "Labels"), ("_split", "Splits"), ("_source", "Sources")):
        column = report.profile.columns.get(name)
        if column is not None and column.values:
            bars = most_frequent(column.values, MOST_BARS)
            yield _bars(name, bars, title, f"rows{_rest(column.values, column.distinct)}")
    numbers = [(name, one.histogram) for name, one in report.profile.columns.items() if one.histogram is not None]
    for name, histogram in numbers[:MOST_COLUMNS]:
        yield _histogram(name, histogram)


def _rest(values: Mapping[str, int], distinct: int | None = None) -> str:
    more = (distinct if distinct is not None else len(values)) - MOST_BARS
    return f"; {more:,} more are not drawn" if more > 0 else ""


def _bars(name: str, values: Mapping[str, int], title: str, caption: str) -> Picture:
    """A row for each value."""
    right = max([*values.values(), 1])
    with canvas(f"bars-{name}", height=34 + ROW * len(values)) as on:
        for row, (value, count) in enumerate(values.items()):
            on.bar(row, 0, count, right, "C0", f"{count:,}", f"{value}: {count:,}")
        on.rows([value or "(empty)" for value in values])
        on.axes.set_ylim(len(values) - 0.4, -0.6)
        on.axes.set_xlim(0, right)
        ticks(on.axes.xaxis, MaxNLocator(4, integer=True), short)
        return on.picture(title, caption)


def _lengths(name: str, lengths: Lengths, before: Lengths | None, title: str, caption: str) -> Picture:
    """Shares of rows by length, on an axis of doublings."""
    every = [*lengths.bins, *(before.bins if before is not None else ())]
    edges = [edge for edge in EDGES if min(every) <= edge <= max(every)]
    with canvas(f"lengths-{name}") as on:
        shares = [lengths.bins.get(edge, 0) / lengths.rows for edge in edges]
        for at, (edge, share) in enumerate(zip(edges, shares, strict=True)):
            (bar,) = on.axes.bar(at, share, width=1, color="C0", edgecolor=CARD, linewidth=0.5)
            on.tip(bar, f"from {edge:,}: {share:.1%}")
        on.key("this version", 0)
        if before is not None and before.rows:
            old = [before.bins.get(edge, 0) / before.rows for edge in edges]
            on.axes.step(range(len(edges)), old, where="mid", color="C1", lw=1.4)
            on.key("the version before", 1)
        step = -(-len(edges) // 6)
        ticks(on.axes.xaxis, FixedLocator(list(range(0, len(edges), step))), lambda at: short(edges[round(at)]))
        ticks(on.axes.yaxis, MaxNLocator(4), lambda value: f"{value:.0%}")
        on.axes.grid(visible=False, axis="x")
        return on.picture(title, caption)


def _histogram(name: str, histogram: Histogram) -> Picture:
    with canvas(f"histogram-{name}") as on:
        for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
            (bar,) = on.axes.bar(
                left, count, width=right - left, align="edge", color="C0", edgecolor=CARD, linewidth=0.5
            )
            on.tip(bar, f"{left:.4g} to {right:.4g}: {count:,}")
        ticks(on.axes.xaxis, MaxNLocator(5), lambda value: f"{value:g}")
        ticks(on.axes.yaxis, MaxNLocator(4, integer=True), short)
        on.axes.grid(visible=False, axis="x")
        return on.picture(name, f"rows by value, of {counted(histogram.rows, 'row')}")


def short(value: float) -> str:
    """1,200 as 1.2k."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"
