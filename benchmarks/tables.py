"""The tables of docs/performance.md: what is measured goes between markers, all else on the page is written by hand.

    <!-- table training -->
    ...
    <!-- end of training -->

A row is known by what was done and against whom. What was measured takes the place of the rows that it knows; the
others stay, each with the date of its own measurement, which a line below the table says more of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEADER = ("what", "against", "goal", "times as fast", "aifx", "peer", "measured")
SEPARATOR = ("---",) * len(HEADER)
MARKER = re.compile(r"^<!-- (table|end of) (\w+) -->$", re.MULTILINE)
CONDITIONS = re.compile(r"^- (\d{4}-\d\d-\d\d(?: \w)?): (.*)$")

NOT_MEASURED = "Not measured"

Row = tuple[str, ...]


class DamagedMarkers(ValueError):
    """The page's markers do not enclose tables."""


def rewrite(page: str, measured: Mapping[str, Any]) -> str:
    """The page with a document of `side_by_side` in its table. Raises DamagedMarkers; all else stays as it was.

    What disturbed the measurement stands with its date, and notes stay where no row is new: they are of the rows.
    """
    start, end = span(page, measured["table"])
    before = read_table(page[start:end])
    new = {(one["what"], one["against"]) for one in measured["rows"]}
    kept = [row for row in before.rows if row[:2] not in new]
    conditions = {date: told for date, told in before.conditions.items() if date in {row[-1] for row in kept}}
    date = _free(measured["date"], conditions_of(measured), conditions)
    mine = [_row(one, date) for one in measured["rows"]]
    now = {row[:2]: row for row in (*before.rows, *mine)}  # where it stood; what is new at the end
    absent = "; ".join(f"{peer}: {why}" for peer, why in measured["absent"].items())
    of_rows = measured["notes"] if mine else [note for note in before.notes if not note.startswith(NOT_MEASURED)]
    notes = [*of_rows, *([f"{NOT_MEASURED} on {measured['date']}: {absent}."] if absent else [])]
    table = Table(list(now.values()), {**conditions, date: conditions_of(measured)}, notes)
    return page[:start] + table.text() + page[end:]


def not_measured(page: str, name: str, date: str, why: str) -> str:
    """The page whose table keeps its rows and says why there are no newer ones. Raises DamagedMarkers."""
    start, end = span(page, name)
    table = read_table(page[start:end])
    notes = [note for note in table.notes if not note.startswith(NOT_MEASURED)]
    table = Table(table.rows, table.conditions, [*notes, f"{NOT_MEASURED} on {date}: {why}."])
    return page[:start] + table.text() + page[end:]


@dataclass(frozen=True)
class Table:
    """A table between two markers.

    Attributes:
        rows: cells in the order of HEADER.
        conditions: by date, as the rows have it: the machine, versions and rounds.
    """

    rows: list[Row]
    conditions: dict[str, str]
    notes: list[str]

    def text(self) -> str:
        cells = [HEADER, SEPARATOR, *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        used = {row[-1] for row in self.rows}
        told = [f"- {date}: {told}" for date, told in sorted(self.conditions.items()) if date in used]
        parts = ["\n".join(part) for part in (lines, [*told, *(f"- {note}" for note in self.notes)]) if part]
        return "\n\n" + "\n\n".join(parts) + "\n\n"


def span(page: str, name: str) -> tuple[int, int]:
    """Where a table's text begins and ends in the page. Raises DamagedMarkers."""
    spans = _spans(page)
    if name not in spans:
        raise DamagedMarkers(f"the page has no table {name}: <!-- table {name} --> and <!-- end of {name} -->")
    return spans[name]


def read_table(body: str) -> Table:
    """The table that `Table.text` wrote. Raises DamagedMarkers for a table of other columns."""
    rows: list[Row] = []
    table = Table([], {}, [])
    for line in filter(None, map(str.strip, body.splitlines())):
        if line.startswith("|"):
            rows.append(tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]))
        elif found := CONDITIONS.match(line):
            table.conditions[found[1]] = found[2]
        else:
            table.notes.append(line.removeprefix("- "))
    if rows and rows[:2] != [HEADER, SEPARATOR]:
        raise DamagedMarkers(f"a table begins with other columns than {', '.join(HEADER)}")
    for row in rows:
        if len(row) != len(HEADER):
            raise DamagedMarkers(f"a row has {len(row)} columns, not {len(HEADER)}: {' | '.join(row)}")
    table.rows.extend(rows[2:])
    return table


def conditions_of(measured: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    rounds = f"{measured['rounds']} round{'s' * (measured['rounds'] != 1)}{', quick' * measured['quick']}"
    return "; ".join([measured["machine"], versions, rounds, *measured["disturbed"]])


def _row(one: Mapping[str, Any], date: str) -> Row:
    spread = "one round"
    if one["pairs"][0] < one["pairs"][1]:
        spread = "{:.2f} to {:.2f}; pairs {:.2f} to {:.2f}".format(*one["interval"], *one["pairs"])
    goal = "-" if one["goal"] is None else f"{one['goal']:g}"
    return (one["what"], one["against"], goal, f"**{one['ratio']:.2f}** ({spread})", one["ours"], one["peer"], date)


def _free(date: str, told: str, conditions: Mapping[str, str]) -> str:
    """The date, or with a letter where the same day saw other conditions."""
    for letter in ("", *(f" {chr(code)}" for code in range(ord("b"), ord("z") + 1))):
        if conditions.get(date + letter, told) == told:
            return date + letter
    raise DamagedMarkers(f"too many measurements of {date}")


def _spans(page: str) -> dict[str, tuple[int, int]]:
    """Where each table's text begins and ends."""
    spans: dict[str, tuple[int, int]] = {}
    opened: re.Match[str] | None = None
    for marker in MARKER.finditer(page):
        line = page.count("\n", 0, marker.start()) + 1
        if marker[1] == "table":
            if opened or marker[2] in spans:
                why = f"{opened[2]} has not ended" if opened else "it is there already"
                raise DamagedMarkers(f"line {line}: table {marker[2]} begins, but {why}")
            opened = marker
        elif not opened or opened[2] != marker[2]:
            raise DamagedMarkers(f"line {line}: table {marker[2]} ends, but it has not begun")
        else:
            spans[marker[2]] = (opened.end(), marker.start())
            opened = None
    if opened:
        raise DamagedMarkers(f"table {opened[2]} has no end")
    return spans
