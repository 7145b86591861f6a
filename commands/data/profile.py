"""`aifx data profile`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifx.commands.console.chart import bar
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import shorten

if TYPE_CHECKING:
    from aifx.verbs.data_versions import ColumnProfile, Profile

BAR = 36
MOST_BARS = 12
MOST_VALUES = 10


def profile(name: DatasetArgument, root: RootOption = None, json: JsonOption = False) -> None:
    """Print the columns of a version, their values, and how long its texts are.

    Examples:
        aifx data profile corpus
        aifx data profile corpus@3f2a --json

    aifx makes the profile when it makes the version, and reads no row here.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_profile

        found = data_profile(name, root=root)
        out.result(found)
        one = found.profile
        out.print(f"{found.reference}: {counted(one.rows, 'row')}, {readable_bytes(one.bytes)}")
        _print_columns(out, one)
        for unit, lengths in one.lengths.items():
            what = {"bytes": "images", "messages": "chats"}.get(unit, "texts")
            title = f"{unit} of {lengths.rows:,} {what}: mean {lengths.mean:,.0f}, median {lengths.quantile(0.5):,}"
            out.print(f"\n{title}, at most {lengths.max:,}")
            _print_bars(out, {f"{edge:,}": count for edge, count in lengths.folded(MOST_BARS)})
        for name, column in one.columns.items():
            _print_values(out, name, column)


def _print_columns(out: Output, one: Profile) -> None:
    def formatted(value: Any) -> str | None:
        return None if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)[:16]

    rows = [
        (
            name,
            column.type,
            f"{column.nulls:,}",
            None if column.distinct is None else f"{'~' if column.is_estimate else ''}{column.distinct:,}",
            formatted(column.min),
            formatted(column.max),
        )
        for name, column in one.columns.items()
    ]
    out.print("")
    out.table(["column", "type", "null", "distinct", "least", "greatest"], rows, right=["null", "distinct"])


def _print_values(out: Output, name: str, column: ColumnProfile) -> None:
    if column.histogram is not None and column.histogram.rows:
        found = column.histogram
        sampled = f" of {counted(found.rows, 'row')}" if found.rows else ""
        out.print(f"\n{name}{sampled}, by value")
        every = 2 if len(found.counts) > MOST_BARS else 1
        starts = range(0, len(found.counts), every)
        _print_bars(out, {f"{found.edges[start]:.5g}": sum(found.counts[start : start + every]) for start in starts})
    elif len(column.values) > 1:
        most = list(column.values.items())[:MOST_VALUES]
        rest = f", the {len(most)} most frequent values" if len(most) < (column.distinct or 0) else ""
        out.print(f"\n{name}, rows by value{rest}")
        _print_bars(out, dict(most))


def _print_bars(out: Output, counts: Mapping[str, int]) -> None:
    for line in bars(counts, ascii_only=not out.out.encoding.lower().startswith("utf")):
        out.print(line)


def bars(counts: Mapping[str, int], *, ascii_only: bool = False) -> Iterator[str]:
    """A line for each: its name, a bar, its number. At most 80 columns wide."""
    top = max(counts.values(), default=0) or 1
    labels: Sequence[str] = [shorten(label, 28) for label in counts]
    width = max(map(len, labels), default=0)
    for label, count in zip(labels, counts.values(), strict=True):
        drawn = bar(count / top, BAR, ascii_only=ascii_only)
        yield f"  {label:>{width}}  {drawn:<{BAR}} {count:,}".rstrip()
