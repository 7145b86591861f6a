"""A line chart in characters: what the live panel, `aifx runs show` and `aifx runs watch` draw losses with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

_BRAILLE = 0x2800
# Unicode 15, block "Braille Patterns": U+2800 plus one bit a dot. A cell is 2 dots wide and 4 high; rows from the top.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def line_chart(
    values: Sequence[float | None],
    width: int,
    height: int,
    *,
    ascii_only: bool = False,
    reach: tuple[float, float] | None = None,
) -> list[str]:
    """`values` from left to right as `height` lines of `width` characters, the highest and lowest labelled at the left.

    Values that are None or not finite leave a gap. More values than dots are averaged, fewer are spread with lines
    between them. No value at all gives blank lines.

    Args:
        reach: the lowest and highest value that the chart has room for at the least.
    """
    finite = [v for v in values if _drawn(v)]
    if not finite or height < 1:
        return [" " * width] * max(height, 0)
    low, high = min([*finite, *(reach or ())]), max([*finite, *(reach or ())])
    labels = _labels(low, high, height)
    gutter = max(len(text) for text in labels)
    columns = width - gutter - 2
    if columns < 2:
        return [text.rjust(gutter)[:width].ljust(width) for text in labels]
    horizontal, vertical = (1, 1) if ascii_only else (2, 4)
    rows = _trace(_resample(values, columns * horizontal), low, high, height * vertical)
    cells = [[" " if ascii_only else chr(_BRAILLE)] * columns for _ in range(height)]
    for x, span in enumerate(rows):
        for y in span:
            row, column = y // vertical, x // horizontal
            if ascii_only:
                cells[row][column] = "*"
            else:
                cells[row][column] = chr(ord(cells[row][column]) | _DOTS[y % 4][x % 2])
    edge = "|" if ascii_only else "┤"
    return [f"{label.rjust(gutter)} {edge}{''.join(line)}" for label, line in zip(labels, cells, strict=True)]


def _drawn(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _level(value: float, low: float, high: float, levels: int) -> int:
    # Halves first: high - low overflows for values near the largest float.
    span = high / 2 - low / 2
    return round((value / 2 - low / 2) / span * (levels - 1)) if span > 0 else (levels - 1) // 2


def _resample(values: Sequence[float | None], columns: int) -> list[float | None]:
    """One value a column: the mean of those that fall into it, or the line between its neighbours, or None in a gap."""
    count = len(values)
    if count >= columns:
        bins = (values[i * count // columns : (i + 1) * count // columns] for i in range(columns))
        drawn = ([v for v in group if _drawn(v)] for group in bins)
        return [sum(v / len(group) for v in group) if group else None for group in drawn]
    if count == 1:
        return [*values, *[None] * (columns - 1)]
    result: list[float | None] = []
    for column in range(columns):
        at = column * (count - 1) / (columns - 1)
        left = min(int(at), count - 2)
        a, b = values[left], values[left + 1]
        share = at - left
        if _drawn(a) and _drawn(b):
            result.append(a * (1 - share) + b * share)
        else:
            nearest = a if share < 0.5 else b
            result.append(nearest if share in (0.0, 1.0) and _drawn(nearest) else None)
    return result


def _trace(values: Sequence[float | None], low: float, high: float, levels: int) -> list[range]:
    """The dots of each column, from the top: its own level and what joins it to the column before."""
    spans: list[range] = []
    before: int | None = None
    for value in values:
        if not _drawn(value):
            spans.append(range(0))
            before = None
            continue
        y = levels - 1 - _level(min(max(value, low), high), low, high, levels)
        if before is None or abs(before - y) <= 1:
            spans.append(range(y, y + 1))
        else:
            spans.append(range(y, before) if y < before else range(before + 1, y + 1))
        before = y
    return spans


def _labels(low: float, high: float, height: int) -> list[str]:
    labels = [""] * height
    labels[-1] = f"{low:.4g}"
    labels[0] = f"{high:.4g}"
    if height >= 5:
        labels[height // 2] = f"{high - (high / 2 - low / 2) * 2 * (height // 2) / (height - 1):.4g}"
    return labels


def bar(fraction: float, width: int, *, ascii_only: bool = False) -> str:
    """`fraction` of `width` characters, to the eighth of one; more than all of it is all of it."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + ("" if not rest else chr(ord("█") + 8 - rest))


def sparkline(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """A character a value, as high as it is against the highest, from nothing up."""
    steps = " .:-=+*#" if ascii_only else "▁▂▃▄▅▆▇█"
    top = max(values, default=0.0)
    return "".join(steps[min(int(max(value, 0.0) / top * 8), 7)] if top > 0 else steps[0] for value in values)


def shares(fractions: Sequence[float], width: int) -> list[int]:
    """Divide `width` characters among fractions, so that together they have as many as their sum."""
    ends = [round(min(sum(fractions[: i + 1]), 1.0) * width) for i in range(len(fractions))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
