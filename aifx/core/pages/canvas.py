"""The canvas of every picture: SVG that is part of a page and takes its colours and letters from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import Locator, NullLocator

from aifx.core.sanitize import shorten

WIDTH, HEIGHT, TEXT = 380, 240, 11
"""Units of the SVG; on a page about a CSS pixel each, a little less on a telephone."""

LABEL = 24
"""Characters of a row's label: more of them leave too little for what the row shows. A tip says the whole."""

# A colour that no picture has by itself represents a variable of the page's style, so that a picture is dark where the
# page is.
INK, FAINT, LINE, CARD = "#0000f1", "#0000f2", "#0000f3", "#0000f4"
SERIES = [f"#0000e{number}" for number in range(8)]
_VARIABLES = {INK: "--ink", FAINT: "--faint", LINE: "--line", CARD: "--card"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES)
}

_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), TEXT),
    "axes.prop_cycle": cycler(color=SERIES),
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
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "none"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Key:
    """A line of a legend, which the page writes: it folds where a drawn one could not. `series` is the number of its
    colour, None for that of the ink; a dashed line was not measured."""

    label: str
    series: int | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawing and its words."""

    title: str
    svg: str
    caption: str
    keys: list[Key]


@dataclass
class Canvas:
    """One set of axes, the texts that its marks show when a pointer rests on them, and its legend.

    The colour of series n is "C<n>", as everywhere in matplotlib.
    """

    figure: Figure
    axes: Axes
    _tips: list[str] = field(default_factory=list)
    _keys: list[Key] = field(default_factory=list)

    def write(self, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
        """A text some points away from a place."""
        self.axes.annotate(text, at, offset, **{"textcoords": "offset points", "color": FAINT, **style})

    def unit(self, text: str) -> None:
        """Write the unit of the vertical axis above it."""
        self.write(text, (0, 1), (-4, 4), xycoords="axes fraction", ha="right", va="bottom")

    def key(self, label: str, series: int | None = None, *, is_dashed: bool = False) -> None:
        self._keys.append(Key(label, None if series is None else series % len(SERIES), is_dashed))

    def tip(self, artist: Any, text: str) -> None:
        artist.set_gid(f"tip{len(self._tips)}-")
        self._tips.append(text)

    def dot(self, x: float, y: float, text: str, color: str, **style: Any) -> None:
        """A mark with a tip."""
        (mark,) = self.axes.plot(x, y, "o", color=color, **style)
        self.tip(mark, text)

    def bar(self, row: int, start: float, length: float, right: float, color: str, text: str, tip: str) -> None:
        """A row's bar on an axis that ends at `right`, with its words where there is room: behind, before or in it."""
        (bar,) = self.axes.barh(row, length, left=start, height=0.62, color=color)
        self.tip(bar, tip)
        if start + length < 0.6 * right:
            self.write(text, (start + length, row), (4, 0), va="center", color=INK)
        elif start > 0.4 * right:
            self.write(text, (start, row), (-4, 0), va="center", color=INK, ha="right")
        else:
            self.write(text, (start, row), (6, 0), va="center", color=CARD, weight="bold")

    def rows(self, labels: Sequence[str]) -> None:
        """Name the rows 0, 1, 2, ... from the top."""
        short = [shorten(label, LABEL) for label in labels]
        self.axes.set_yticks(range(len(labels)), short)
        self.axes.tick_params(axis="y", length=0, labelcolor=INK)
        self.axes.grid(visible=False, axis="y")
        self.axes.invert_yaxis()

    def picture(self, title: str, caption: str = "") -> Picture:
        """The finished picture. Its colours and letters are the page's, its ids its own, by the style's hashsalt."""
        target = StringIO()
        self.figure.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = target.getvalue()
        text = text[text.index("<svg") :].rstrip()
        for number, tip in enumerate(self._tips):
            text = text.replace(f'<g id="tip{number}-">', f"<g><title>{escape(tip)}</title>")
        for color, variable in _VARIABLES.items():
            text = text.replace(color, f"var({variable})")
        attributes = r'class="picture" \1 role="img" xmlns:xlink="http://www.w3.org/1999/xlink"'
        text = re.sub(r'<svg[^>]*(viewBox="[^"]+")[^>]*', f"<svg {attributes}", text, count=1)
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r" font-family: [^;]*;", "", text)
        text = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", text)  # matplotlib 3.9
        used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
        text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
        return Picture(title, text, caption, self._keys)


@contextmanager
def canvas(name: str, height: int = HEIGHT) -> Iterator[Canvas]:
    """Axes to draw on, in this house's style whatever the user's matplotlibrc says. Each picture of a page has a name
    of its own."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        yield Canvas(figure, figure.add_subplot())


def ticks(axis: Axis, locator: Locator, text: Callable[[float], str]) -> None:
    """Set the ticks of an axis and their labels, with a narrow space before a unit."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: text(value).strip().replace(" ", "\u202f"))
