"""What every picture is drawn on: SVG that is part of a page and takes its colours and letters from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from aifx.benchmarking import units

WIDTH, HEIGHT, TEXT = 380, 240, 11
"""Units of the SVG; on a page about a CSS pixel each, a little less on a telephone."""

LABEL = 24
"""Characters of a row's label: more of them leave too little for what the row shows."""

# A colour that no picture has by itself represents a variable of the page's style, so that a picture is dark where the
# page is.
INK, FAINT, LINE, CARD = "#0000f1", "#0000f2", "#0000f3", "#0000f4"
SERIES = [f"#0000e{number}" for number in range(8)]
_VARIABLES = {INK: "--ink", FAINT: "--faint", LINE: "--line", CARD: "--card"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES)
}

_STYLE: dict[Any, Any] = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Key:
    """A line of a legend, which the page writes: it folds where a drawn one could not.

    Attributes:
        series: the number of its colour; None for that of the ink.
        is_dashed: a line that was not measured.
    """

    label: str
    series: int | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawing and its words."""

    title: str
    svg: str
    caption: str = ""
    keys: list[Key] = field(default_factory=list)


@dataclass
class Canvas:
    """One set of axes, and the texts that its marks show when a pointer rests on them."""

    name: str
    figure: Figure
    axes: Axes
    _tips: list[str] = field(default_factory=list)

    def unit(self, text: str) -> None:
        """Of the vertical axis, above it."""
        self.axes.annotate(
            text, (0, 1), (-4, 4), "axes fraction", textcoords="offset points", color=FAINT, ha="right", va="bottom"
        )

    def tip(self, artist: Any, text: str) -> None:
        artist.set_gid(f"tip{len(self._tips)}-")
        self._tips.append(text)

    def svg(self) -> str:
        target = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(target, format="svg", metadata=nothing)
        text = target.getvalue()
        text = text[text.index("<svg") :]
        for number, tip in enumerate(self._tips):
            text = text.replace(f'<g id="tip{number}-">', f"<g><title>{escape(tip)}</title>")
        for color, variable in _VARIABLES.items():
            text = text.replace(color, f"var({variable})")
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r" font-family: [^;]*;", "", text)
        text = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", text)  # matplotlib 3.9
        return _framed(_own_ids(text, self.name), self.name)


@contextmanager
def canvas(name: str, height: int = HEIGHT) -> Iterator[Canvas]:
    """Axes to draw on, in this house's style whatever the user's matplotlibrc says.

    Args:
        name: the picture's, within its page.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        yield Canvas(name, figure, figure.add_subplot())


def binary_axis(axis: Any, *, is_count: bool = False) -> None:
    """Sizes in bytes, or counts, a tick at a power of two."""
    axis.axes.set_xscale("log", base=2)
    axis.set_major_locator(LogLocator(2, numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if is_count else _narrow(units.size(value))))


def rate_axis(axis: Any, *, is_log: bool = False) -> None:
    """Amounts a second with the unit's prefix; the unit is at the axis."""
    axis.set_major_locator(LogLocator(10, numticks=6) if is_log else MaxNLocator(5))
    axis.set_minor_formatter(NullFormatter())
    if is_log:
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _narrow(units.rate(value)) if value else "0"))


def duration_axis(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _narrow(units.duration(value)) if value > 0 else "0"))


def short(text: str, width: int) -> str:
    """As a picture has room for it; a tip says the whole."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _narrow(text: str) -> str:
    """With a narrow space before the unit."""
    return text.strip().replace(" ", "\u202f")


def _own_ids(text: str, name: str) -> str:
    """Ids that are this picture's alone on its page; what nothing refers to needs none."""
    wanted = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in wanted else "", text)
    return re.sub(r"(url\(|href=\")#", rf"\g<1>#{name}-", text)


def _framed(text: str, name: str) -> str:
    """As wide as the page lets it be."""
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, name
    return f'<svg class="picture" {box[0]} role="img" xmlns:xlink="http://www.w3.org/1999/xlink">{rest.rstrip()}'
