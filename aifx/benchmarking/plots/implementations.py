"""The implementations of each kernel against each other."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from aifx.benchmarking import units
from aifx.benchmarking.plots.canvas import FAINT, INK, LABEL, LINE, SERIES, Key, Picture, canvas, short
from aifx.benchmarking.results import Report, Result

ROW = 15
MOST_ROWS = 60


def implementations(report: Report) -> Picture | None:
    """One row per case, one dot per implementation: its time over the fastest. None if there is nothing to compare."""
    results = [
        r for r in report.results if r.name.startswith("kernels.") and "implementation" in r.params and r.median_s > 0
    ]
    shared = {
        name: value for r in results[:1] for name, value in r.params.items() if name not in ("implementation", "case")
    }
    shared = {name: value for name, value in shared.items() if all(r.params.get(name) == value for r in results)}
    cases: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        words = [str(value) for name, value in result.params.items() if name != "implementation" and name not in shared]
        cases.setdefault((result.name.partition(".")[2], " ".join(words)), []).append(result)
    compared = {case: implementations for case, implementations in cases.items() if len(implementations) > 1}
    shown = dict(list(compared.items())[:MOST_ROWS])
    if not shown:
        return None
    names = list(dict.fromkeys(str(r.params["implementation"]) for results in shown.values() for r in results))
    rows: list[tuple[str, list[Result]]] = []
    for (op, case), results in shown.items():
        if not rows or all(op != label for label, _ in rows):
            rows.append((op, []))
        rows.append((case, results))
    with canvas("implementations", height=34 + ROW * len(rows)) as on:
        for number, (_, results) in enumerate(rows):
            if not results:
                continue
            best = min(result.median_s for result in results)
            slowest = max(result.median_s for result in results)
            on.axes.plot([1, slowest / best], [number] * 2, color=LINE, lw=2, zorder=1)
            for result in results:
                color = SERIES[names.index(str(result.params["implementation"])) % len(SERIES)]
                (mark,) = on.axes.plot(result.median_s / best, number, "o", color=color, markersize=6)
                times = (
                    f", {result.median_s / best:.2f} times the fastest" if result.median_s > best else ", the fastest"
                )
                on.tip(mark, f"{units.named(result.name[8:], result.params)}: {units.duration(result.median_s)}{times}")
        on.axes.set_xscale("log")
        on.axes.set_yticks(range(len(rows)), [short(label, LABEL) for label, _ in rows])
        for tick, (_, results) in zip(on.axes.get_yticklabels(), rows, strict=True):
            tick.set_color(FAINT if results else INK)
            tick.set_fontweight("normal" if results else "bold")
        on.axes.tick_params(axis="y", length=0)
        on.axes.grid(visible=False, axis="y")
        on.axes.set_ylim(len(rows) - 0.4, -0.6)
        on.axes.spines["left"].set_visible(False)
        on.axes.xaxis.set_minor_locator(NullLocator())
        on.axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=7))
        on.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        svg = on.svg()
    hidden = f"; {len(compared) - len(shown)} more cases are in the table" if len(compared) > len(shown) else ""
    keys = [Key(name, number % len(SERIES)) for number, name in enumerate(names)]
    said = "".join(f"{value}; " for value in shared.values())
    return Picture("Implementations of a kernel", svg, f"{said}time over that of the fastest{hidden}", keys)
