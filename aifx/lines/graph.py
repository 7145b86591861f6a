"""The stations of a line as a picture and as a page: each below those that it needs, with its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from aifx.core.pages import date, render
from aifx.core.results import Result
from aifx.core.sanitize import escape_controls, shorten

WIDTH, NARROW_WIDTH, HEIGHT, LANE, GAP_X, GAP_Y, EDGE = 236, 300, 84, 14, 24, 44, 6
COLUMNS = 4
"""Stations side by side, at most: as many as a page has room for."""
LETTER, BOLD = 6.6, 7.7
"""Width of a letter of a text and of a name, about."""
LOOKS = {
    "done": "healthy", "running": "info", "pending": "info", "ready": "info", "failed": "critical",
    "verdict": "critical", "waiting": "warning", "blocked": "warning", "paused": "warning",
}  # fmt: skip
"""The class of a state in the style of pages, if it has a colour. The word is always there too."""


@dataclass(frozen=True)
class GraphStation:
    """A station in a picture.

    Attributes:
        level: 0 for one that needs no other, otherwise one more than that of the last that it needs.
        on: where it runs: local, slurm or k8s.
        state: as in `aifx line status`.
        outcome: of its last end; empty if it has not ended.
        why: what it waits for, or why it does not run.
        hint: a command that lets it go on.
        since: Unix time at which the attempt that runs began, or the last one ended; null if it never ran.
        next: Unix time at which it may begin, or begin again, if that is known.
    """

    name: str
    level: int
    after: tuple[str, ...]
    run: tuple[str, ...]
    when: str
    outcome: str
    on: str
    state: str
    why: str
    hint: str
    since: float | None
    next: float | None

    @property
    def look(self) -> str:
        return LOOKS.get(self.state, "plain")


@dataclass(frozen=True)
class LineGraph(Result):
    """The stations of a line, parents first.

    Attributes:
        time: Unix time of their states.
        notes: about the whole line, such as a pause.
    """

    path: str
    stations: tuple[GraphStation, ...]
    time: float
    notes: tuple[str, ...]

    def text(self) -> Iterator[str]:
        """Return a row for each station, below and to the right of those that it needs."""
        for one in self.stations:
            on = f"  on {one.on}" if one.on != "local" else ""
            needs = f"  after {', '.join(one.after)}" if one.after else ""
            when = f"  when {one.when}" if one.when else ""
            last = f", last {one.outcome}" if one.outcome not in ("", one.state) else ""
            yield f"{'  ' * one.level}{one.name}{on}{needs}{when}  {one.state}{last}"

    @property
    def name(self) -> str:
        """The file, with the name of its folder."""
        return "/".join(Path(self.path).absolute().parts[-2:])

    def svg(self, columns: int = COLUMNS, *, is_alone: bool = True) -> str:
        """Return a picture that loads nothing and runs nothing.

        Args:
            columns: stations side by side, at most.
            is_alone: the picture has a style of its own; otherwise it takes the page's.
        """
        width, height, parts = _draw(self.stations, columns)
        style = f"<style>{_style()}</style>" if is_alone else ""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="line" viewBox="0 0 {width} {height}" width="{width}" '
            f'role="img" aria-label="stations of the line">'
        )
        return "\n".join([head, style, *parts, "</svg>"]) + "\n"

    def page(self) -> str:
        """Return the graph as one web page, with a table of what the boxes have no room for."""
        from markupsafe import Markup

        pictures = {"wide": Markup(self.svg(is_alone=False)), "narrow": Markup(self.svg(1, is_alone=False))}
        return render(
            "aifx.lines", "line.html", title=f"Line {self.name}", command="aifx line graph --html", graph=self,
            pictures=pictures, date=date,
        )  # fmt: skip


def _style() -> str:
    """The style of a picture that is no part of a page, with the colours of pages."""
    base = (files("aifx.core.pages") / "base.css").read_text(encoding="utf-8")
    colors = base[: base.index("* {")]  # of a light and of a dark page
    own = (files("aifx.lines") / "pages" / "graph.css").read_text(encoding="utf-8")
    return f"\n{colors}svg.line {{ background: var(--page); }}\n{own}"


def _draw(stations: Sequence[GraphStation], columns: int) -> tuple[int, int, list[str]]:
    """Width, height and elements of a picture.

    A layered layout: each station is in a row below its parents, in the first one that has room. An arrow that passes
    rows has a lane of its own in each of them, so that it crosses no box; arrows from one station share it. The order
    within a row follows the places above it, so that few arrows cross.
    """
    width, is_narrow = (NARROW_WIDTH, True) if columns == 1 else (WIDTH, False)
    row_of: dict[str, int] = {}
    rows: list[list[tuple[str, str]]] = []  # of (station, "") for a box, and ("", station) for a lane of its arrows
    for one in stations:
        row = 1 + max((row_of[parent] for parent in one.after), default=-1)
        while row < len(rows) and len(rows[row]) >= columns:
            row += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
        rows[row].append((one.name, ""))
        row_of[one.name] = row
    for parent, first in row_of.items():
        last = max((row_of[one.name] for one in stations if parent in one.after), default=0)
        for between in rows[first + 1 : last]:
            between.append(("", parent))
    after = {one.name: one.after for one in stations}
    middles: list[dict[tuple[str, str], float]] = []
    sizes = [sum(LANE if lane else width + GAP_X for _, lane in row) for row in rows]
    total = max(sizes) + 2 * EDGE
    for items, size in zip(rows, sizes, strict=True):
        if not is_narrow and middles:
            items.sort(key=lambda item: _middle_above(item, middles[-1], after))
        x = float(EDGE) if is_narrow else (total - size) / 2
        middles.append({})
        for item in items:
            middles[-1][item] = x + (0 if item[1] else width / 2)
            x += LANE if item[1] else width + GAP_X

    def top(row: int) -> int:
        return EDGE + row * (HEIGHT + GAP_Y)

    edges, boxes = [], []
    for one in stations:
        row = row_of[one.name]
        for parent in one.after:
            first = row_of[parent]
            passed = [(middles[at]["", parent], top(at)) for at in range(first + 1, row)]
            begin = (middles[first][parent, ""], top(first) + HEIGHT)
            edges.append(_edge(begin, passed, (middles[row][one.name, ""], top(row))))
        boxes.append(_box(one, middles[row][one.name, ""] - width / 2, top(row), width))
    return total, top(len(rows)) - GAP_Y + EDGE, [*edges, *boxes]


def _middle_above(
    item: tuple[str, str], above: dict[tuple[str, str], float], after: dict[str, tuple[str, ...]]
) -> float:
    """The mean place of what an item hangs on in the row above it."""
    parents = (item[1],) if item[1] else after[item[0]]
    found = [above.get((parent, ""), above.get(("", parent))) for parent in parents]
    places = [place for place in found if place is not None]
    return sum(places) / len(places) if places else 0.0


def _edge(begin: tuple[float, float], passed: Sequence[tuple[float, int]], end: tuple[float, int]) -> str:
    x, y = begin
    path = f"M{x:g},{y:g}"
    for x2, y2 in (*passed, end):
        middle = (y + y2) / 2
        path += f" C{x:g},{middle:g} {x2:g},{middle:g} {x2:g},{y2:g}"
        x, y = x2, y2
        if (x2, y2) != end:
            y = y2 + HEIGHT
            path += f" V{y:g}"
    return f'<path d="{path} m-4,-7 l4,7 l4,-7"/>'


def _box(one: GraphStation, x: float, y: int, width: int) -> str:
    most, most_of_name = int((width - 24) / LETTER), int((width - 24) / BOLD)
    facts = [f"last {one.outcome}"] if one.outcome not in ("", one.state) else []
    facts += [f"on {one.on}"] if one.on != "local" else []
    command = one.run[0] + (f" (and {len(one.run) - 1} more)" if len(one.run) > 1 else "")
    fact = f'<tspan class="faint" dx="6">{_text(", ".join(facts))}</tspan>' if facts else ""
    rows = [
        ("name", _text(one.name, most_of_name)),
        (f"state {one.look}", _text(one.state) + fact),
        ("faint", _text(one.why or (f"when {one.when}" if one.when else ""), most)),
        ("faint", _text(command, most)),
    ]
    texts = [f'<text class="{kind}" x="14" y="{20 + 18 * number}">{text}</text>' for number, (kind, text) in
             enumerate(row for row in rows if row[1])]  # fmt: skip
    title = "\n".join(filter(None, [one.name, one.state, one.why, *one.run, f"when {one.when}" if one.when else ""]))
    frame = f'<rect x="0.5" y="0.5" width="{width - 1}" height="{HEIGHT - 1}" rx="6"/>'
    mark = f'<rect class="mark {one.look}" x="1" y="6" width="5" height="{HEIGHT - 12}"/>'
    # A picture within the picture cuts off what is wider than its box.
    return (f'<svg x="{x:g}" y="{y}" width="{width}" height="{HEIGHT}"><title>{_text(title)}</title>'
            f"{frame}{mark}{''.join(texts)}</svg>")  # fmt: skip


def _text(text: str, most: int = 0) -> str:
    shown = escape_controls(text, keep="\n")
    return escape(shorten(shown, most) if most else shown)
