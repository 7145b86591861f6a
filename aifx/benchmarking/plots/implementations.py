"""The implementations of each kernel against each other."""

from __future__ import annotations

from matplotlib.ticker import LogLocator

from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import shared_params
from aifx.core import units
from aifx.core.pages.canvas import FAINT, INK, LINE, Picture, canvas, ticks

ROW = 15
MOST_ROWS = 60


def implementations(report: Report) -> Picture | None:
    """One row per case, one dot per implementation: its time over the fastest. None if there is nothing to compare."""
    results = [
        r for r in report.results if r.name.startswith("kernels.") and "implementation" in r.params and r.median_s > 0
    ]
    shared = {name: value for name, value in shared_params(results).items() if name not in ("implementation", "case")}
    cases: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        words = [str(value) for name, value in result.params.items() if name != "implementation" and name not in shared]
        cases.setdefault((result.name.partition(".")[2], " ".join(words)), []).append(result)
    compared = [(*case, results) for case, results in cases.items() if len(results) > 1]
    listed = compared[:MOST_ROWS]
    if not listed:
        return None
    names = list(dict.fromkeys(str(r.params["implementation"]) for _, _, results in listed for r in results))
    rows: list[tuple[str, list[Result]]] = []
    for number, (op, case, results) in enumerate(listed):
        if number == 0 or listed[number - 1][0] != op:
            rows.append((op, []))
        rows.append((case, results))
    with canvas("implementations", height=34 + ROW * len(rows)) as on:
        for row, (_, results) in enumerate(rows):
            times = [result.median_s for result in results]
            if results:
                on.axes.plot([1, max(times) / min(times)], [row] * 2, color=LINE, lw=2, zorder=1)
            for result in results:
                ratio = result.median_s / min(times)
                slower = f"{ratio:.2f} times the fastest" if ratio > 1 else "the fastest"
                name = units.named(result.name.partition(".")[2], result.params)
                color = f"C{names.index(str(result.params['implementation']))}"
                on.dot(ratio, row, f"{name}: {units.duration(result.median_s)}, {slower}", color, markersize=6)
        on.rows([label for label, _ in rows])
        for label, (_, results) in zip(on.axes.get_yticklabels(), rows, strict=True):
            label.set(color=FAINT if results else INK, fontweight="normal" if results else "bold")
        on.axes.set(xscale="log", ylim=(len(rows) - 0.4, -0.6))
        on.axes.spines["left"].set_visible(False)
        ticks(on.axes.xaxis, LogLocator(10, subs=(1, 2, 5), numticks=7), lambda value: f"{value:g}x")
        for number, name in enumerate(names):
            on.key(name, number)
        hidden = f"; {len(compared) - len(listed)} more cases are in the table" if len(compared) > len(listed) else ""
        context = "".join(f"{value}; " for value in shared.values())
        return on.picture("Implementations of a kernel", f"{context}time over that of the fastest{hidden}")
