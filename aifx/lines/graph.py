"""The stations of a line as a picture: each below those that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from aifx.core.results import Result
from aifx.core.sanitize import escape_controls
from aifx.lines.file import Line, Station

WIDTH, HEIGHT, GAP_X, GAP_Y, EDGE = 230, 64, 40, 56, 20
MAX_LETTERS = 32
"""Letters of a text in a box; the whole text is its tooltip."""
STYLE = """
svg { background: #fff; font: 13px system-ui, sans-serif; }
rect { fill: #f6f7f9; stroke: #59626e; } path { fill: none; stroke: #59626e; }
text { fill: #1b1f24; } .faint { fill: #59626e; font-size: 11px; } .name { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  svg { background: #14171b; } rect { fill: #1d2127; stroke: #9aa5b1; } path { stroke: #9aa5b1; }
  text { fill: #e4e8ed; } .faint { fill: #9aa5b1; }
}
"""


@dataclass(frozen=True)
class GraphStation:
    """A station in a picture.

    Attributes:
        level: 0 for one that needs no other, otherwise one more than that of the last that it needs.
        on: where it runs: local, slurm or k8s.
        outcome: of its last end; empty if it has not ended.
    """

    name: str
    level: int
    after: tuple[str, ...]
    run: tuple[str, ...]
    when: str
    outcome: str
    on: str


@dataclass(frozen=True)
class LineGraph(Result):
    """The stations of a line, parents first."""

    path: str
    stations: tuple[GraphStation, ...]

    def text(self) -> Iterator[str]:
        """Return a row for each station, below and to the right of those that it needs."""
        for one in self.stations:
            needs = f"  after {', '.join(one.after)}" if one.after else ""
            when = f"  when {one.when}" if one.when else ""
            outcome = f"  {one.outcome}" if one.outcome else ""
            on = f"  on {one.on}" if one.on != "local" else ""
            yield f"{'  ' * one.level}{one.name}{on}{needs}{when}{outcome}"

    def svg(self) -> str:
        """Return a picture that loads nothing and runs nothing."""
        rows: dict[int, list[GraphStation]] = {}
        for one in self.stations:
            rows.setdefault(one.level, []).append(one)
        places = {
            one.name: (EDGE + number * (WIDTH + GAP_X), EDGE + level * (HEIGHT + GAP_Y))
            for level, row in rows.items()
            for number, one in enumerate(row)
        }
        width = max(x for x, _ in places.values()) + WIDTH + EDGE
        height = max(y for _, y in places.values()) + HEIGHT + EDGE
        parts = [_edge(places[parent], places[one.name]) for one in self.stations for parent in one.after]
        parts += [_box(one, *places[one.name]) for one in self.stations]
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        arrow = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0,0 L8,4 L0,8"/></marker></defs>'
        )
        return "\n".join([head, f"<style>{STYLE}</style>", arrow, *parts, "</svg>"]) + "\n"


def graph_of(line: Line, outcomes: Mapping[str, str]) -> LineGraph:
    """The picture of a line.

    Args:
        outcomes: of the last end of each station that has ended.
    """
    levels: dict[str, int] = {}
    for name, station in line.stations.items():
        levels[name] = 1 + max((levels[parent] for parent in station.parents), default=-1)

    def shown(name: str, station: Station) -> GraphStation:
        outcome = outcomes.get(name, "")
        return GraphStation(name, levels[name], station.parents, station.run, station.when, outcome, station.on)

    return LineGraph(str(line.path), tuple(shown(name, station) for name, station in line.stations.items()))


def _edge(begin: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = begin[0] + WIDTH // 2, begin[1] + HEIGHT, end[0] + WIDTH // 2, end[1]
    middle = (y1 + y2) // 2
    return f'<path d="M{x1},{y1} C{x1},{middle} {x2},{middle} {x2},{y2}" marker-end="url(#arrow)"/>'


def _box(one: GraphStation, x: int, y: int) -> str:
    command = one.run[0] + (f" (and {len(one.run) - 1} more)" if len(one.run) > 1 else "")
    facts = [f"on {one.on}" if one.on != "local" else "", f"when {one.when}" if one.when else ""]
    rows = [("name", one.name), ("faint", command), ("faint", ", ".join(filter(None, facts)))]
    texts = [
        f'<text class="{kind}" x="{x + 10}" y="{y + 20 + 17 * number}">{_text(text, MAX_LETTERS)}</text>'
        for number, (kind, text) in enumerate(rows)
        if text
    ]
    if one.outcome:
        place = f'x="{x + WIDTH - 10}" y="{y + 20}" text-anchor="end"'
        texts.append(f'<text class="faint" {place}>{_text(one.outcome, MAX_LETTERS)}</text>')
    title = _text("\n".join([one.name, *one.run, *([f"when {one.when}"] if one.when else [])]))
    box = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
    return f"<g><title>{title}</title>{box}{''.join(texts)}</g>"


def _text(text: str, most: int = 0) -> str:
    text = escape_controls(text, keep="\n")
    return escape(text if not most or len(text) <= most else text[: most - 1] + "…")
