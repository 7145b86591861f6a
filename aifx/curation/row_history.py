"""The history of a row, which explains why it is in a version or is not: its source, and what each step did with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from aifx.core.artifact import short_reference
from aifx.core.errors import UsageError
from aifx.core.results import Result
from aifx.curation.history import ancestors
from aifx.curation.labels.store import STEP, LabelState, label_file, read_entries
from aifx.data.names import CHAT, CLUSTER, ROW, SOURCE, joined_row_column
from aifx.data.versions.catalog import JOIN, Catalog
from aifx.data.versions.made_steps import MAKE, made_steps
from aifx.data.versions.manifest import Manifest
from aifx.data.versions.sql import RowTable, identifier, open_tables, quoted

BEGINNING = 200
"""Characters of a text that are shown."""

MOST_FOUND = 20

RowOutcome: TypeAlias = Literal["added", "kept", "changed", "dropped"]


@dataclass(frozen=True)
class FoundRow:
    """A row, in short.

    Attributes:
        text: the beginning of its text; None if it has none.
        reference: a version that holds it.
    """

    row: str
    source: str | None
    text: str | None
    reference: str


@dataclass(frozen=True)
class RowLabel:
    """A label that a labeller gave to a row.

    Attributes:
        time: in UTC.
    """

    label: str
    labeller: str
    time: str
    note: str


@dataclass(frozen=True)
class RowStep:
    """The outcome of a step for a row.

    Attributes:
        reference: the version that the step made.
        outcome: "changed" if a column of the row has another value than before.
        rule: that dropped it.
        twin: the row that it duplicates; None if it has none, or if that row is no more.
        labels: that people have given it, if `data label apply` made the version.
        joined: the row that `data join` found for it, and its version, as "row of name@version".
    """

    reference: str
    step: str
    outcome: RowOutcome
    rule: str | None
    twin: FoundRow | None
    labels: tuple[RowLabel, ...] = ()
    joined: str | None = None


@dataclass(frozen=True)
class RowHistory:
    """The way of a row into a version.

    Attributes:
        reference: the version.
        number: of the row in its source, from 1; None if its id has none.
        license: of its source.
        found: the row in its last form, masked if a step masked it.
    """

    reference: str
    row: str
    source: str | None
    number: int | None
    license: str | None
    found: FoundRow | None
    is_in_version: bool
    steps: tuple[RowStep, ...]


@dataclass(frozen=True)
class BadInput:
    """A part of a source that could not be read.

    Attributes:
        line: from 1; None for a whole file.
    """

    reference: str
    source: str
    line: int | None
    reason: str


@dataclass(frozen=True)
class Explanation(Result):
    """The document of `aifx data why --json`.

    Attributes:
        rows: those that the question can mean; a history is given if there is one.
    """

    rows: tuple[FoundRow, ...]
    histories: tuple[RowHistory, ...]
    quarantined: tuple[BadInput, ...]


def explain_row(catalog: Catalog, row: str | None, text: str | None, references: Sequence[str]) -> Explanation:
    """Find a row by the beginning of its id, by SOURCE:NUMBER or by a part of its text, and what steps did with it.

    Args:
        references: versions whose histories are searched.

    Raises UsageError if no row is found.
    """
    chains = {manifests[-1].reference: manifests for one in references if (manifests := ancestors(catalog, one))}
    rows: dict[str, FoundRow] = {}
    bad: list[BadInput] = []
    for manifests in chains.values():
        with _searching(catalog, manifests) as search:
            rows |= {one.row: one for one in search.rows(row, text)}
            bad += search.quarantined(row, text)
    if row is not None and row in rows:
        rows = {row: rows[row]}
    if not rows and not bad:
        what = f"no row {row!r}" if row is not None else f"no row with the text {text!r}"
        why = f"searched {', '.join(chains)} and what they were made from" if chains else "there is no data set"
        hint = "aifx data query NAME 'SELECT _row, _source FROM data LIMIT 10'"
        raise UsageError(what, why, hint if chains else "search the files of the project: --dataset data.train")
    histories: list[RowHistory] = []
    if len(rows) == 1:
        (one,) = rows.values()
        for manifests in chains.values():
            with _searching(catalog, manifests) as search:
                histories += search.history(one.row)
    return Explanation(tuple(rows.values()), tuple(histories), tuple(dict.fromkeys(bad)))


@contextmanager
def _searching(catalog: Catalog, manifests: Sequence[Manifest]) -> Iterator[_Search]:
    """A search in a version and its ancestors, whose rows are tables of a connection while the context is open."""
    tables: dict[str, RowTable] = {}
    for number, manifest in enumerate(manifests):
        version = catalog.open(manifest.whole_reference)
        tables[f"rows_{number}"] = RowTable(version)
        tables |= {f"dropped_{number}": RowTable(version, "dropped")} if version.dropped else {}
        tables |= {f"quarantine_{number}": RowTable(version, "quarantine")} if version.quarantine else {}
    with open_tables(tables) as connection:
        yield _Search(catalog, manifests, tables, connection)


@dataclass(frozen=True)
class _Search:
    """A search for rows: those of the manifests are tables of the connection, with their number at the end."""

    catalog: Catalog
    manifests: Sequence[Manifest]
    tables: Mapping[str, RowTable]
    connection: Any

    def rows(self, row: str | None, text: str | None) -> list[FoundRow]:
        """The rows of any version that are searched for, each once."""
        condition = ""
        if row is not None:
            source, _, place = row.rpartition(":")
            condition = f"(starts_with({ROW}, {quoted(row)})"
            if source and place.isdecimal():
                condition += f" OR {SOURCE} = {quoted(source)} AND ends_with({ROW}, '-{int(place) - 1}')"
            condition += ")"
        found: dict[str, FoundRow] = {}
        for number, manifest in enumerate(self.manifests):
            if text is not None:
                if (column := _text_of(manifest)) is None:
                    continue
                condition = f"contains(lower({column}), lower({quoted(text)}))"
            found |= {one.row: one for one in self._select(number, condition) if one.row not in found}
            if row in found:
                return [found[str(row)]]
        return list(found.values())[:MOST_FOUND]

    def quarantined(self, row: str | None, text: str | None) -> list[BadInput]:
        """The rows in quarantine at SOURCE:LINE, or with a text in them."""
        source, _, line = (row or "").rpartition(":")
        values: list[str | int]
        if text is not None:
            # Bytes that are no ASCII are escaped, alike in both.
            which, values = "contains(lower(value::VARCHAR), lower(encode(?)::VARCHAR))", [text]
        elif source and line.isdecimal():
            which, values = "source = ? AND (line = ? OR line IS NULL)", [source, int(line)]
        else:
            return []
        found = []
        for number, manifest in enumerate(self.manifests):
            if (table := f"quarantine_{number}") in self.tables:
                sql = f"SELECT source, line, reason FROM {table} WHERE {which} LIMIT {MOST_FOUND}"
                rows = self.connection.execute(sql, values).fetchall()
                found += [BadInput(manifest.reference, *one) for one in rows]
        return found

    def history(self, row: str) -> list[RowHistory]:
        """The history of a row, if any version has it."""
        is_row = f"{ROW} = {quoted(row)}"
        (null,) = self.connection.execute("SELECT hash(NULL)").fetchone()  # of any type
        steps: list[RowStep] = []
        last: int | None = None
        before: dict[str, Any] | None = None
        for number, manifest in enumerate(self.manifests):
            names = [name for name in manifest.columns if name != CLUSTER] or [ROW]  # a mix has no columns
            content = f"SELECT {', '.join(f'hash({identifier(name)})' for name in names)} FROM rows_{number}"
            now = self.connection.execute(f"{content} WHERE {is_row}").fetchone()
            if manifest.step.name == MAKE:
                steps += self._made_steps(number, row, {name for name, h in (before or {}).items() if h != null})
                last = number if now is not None else last
                before = dict(zip(names, now, strict=True)) if now is not None else None
            elif now is not None:
                last = number
                known = dict(zip(names, now, strict=True))
                past = before or {}
                is_changed = any(known.get(name, h) != h for name, h in past.items())
                labels: tuple[RowLabel, ...] = ()
                if manifest.step.name == STEP and before is not None:
                    column = manifest.step.settings["column"]
                    is_changed |= past.get(column, null) != known[column]
                    labels = _labels_behind(self.catalog, manifest, row) if known[column] != null else ()
                outcome: RowOutcome = "added" if before is None else "changed" if is_changed else "kept"
                joined = self._joined(number, manifest, is_row) if manifest.step.name == JOIN else None
                steps.append(RowStep(manifest.reference, manifest.step.name, outcome, None, None, labels, joined))
                before = known
            elif (table := f"dropped_{number}") in self.tables:
                for rule, twin in self.connection.execute(f"SELECT rule, twin FROM {table} WHERE {is_row}").fetchall():
                    found_twin = self._find(twin)
                    steps.append(RowStep(manifest.reference, manifest.step.name, "dropped", rule, found_twin))
        if not steps:
            return []
        manifest = self.manifests[-1]
        found = self._select(last, is_row)[0] if last is not None else None
        source = found.source if found is not None else None
        digits = row.rpartition("-")[2]
        license = next((one.license for m in self.manifests for one in m.sources if one.name == source), None)
        return [
            RowHistory(
                reference=manifest.reference,
                row=row,
                source=source,
                number=int(digits) + 1 if digits.isdecimal() else None,
                license=license,
                found=found,
                is_in_version=steps[-1].reference == manifest.reference and steps[-1].outcome != "dropped",
                steps=tuple(steps),
            )
        ]

    def _joined(self, number: int, manifest: Manifest, is_row: str) -> str | None:
        """The row of the features that a join found for a row, and their version."""
        features = short_reference(manifest.parents[1])
        column = identifier(joined_row_column(features.partition("@")[0], manifest.step.settings["prefix"]))
        (row,) = self.connection.execute(f"SELECT {column} FROM rows_{number} WHERE {is_row}").fetchone()
        return f"{row} of {features}" if row is not None else None

    def _made_steps(self, number: int, row: str, filled: set[str]) -> Iterator[RowStep]:
        """The outcomes for a row of the steps that made a version together; none if their parent did not have it.

        Args:
            filled: columns in which the row had a value before these steps. A step may add to them.
        """
        manifest, is_row = self.manifests[number], f"{ROW} = {quoted(row)}"
        is_there = self.connection.execute(f"SELECT 1 FROM rows_{number} WHERE {is_row}").fetchone() is not None
        outcomes: dict[int, list[tuple[str | None, str | None]]] = {}
        if (table := f"dropped_{number}") in self.tables:
            sql = f"SELECT step, rule, twin FROM {table} WHERE {is_row}"
            for step, *outcome in self.connection.execute(sql).fetchall():
                outcomes.setdefault(step, []).append(tuple(outcome))
        dropped = {step: found for step, found in outcomes.items() if any(rule is not None for rule, _ in found)}
        if not is_there and not dropped:
            return
        for place, made in enumerate(made_steps(manifest)):
            for rule, twin in dropped.get(place, ()):
                if rule is not None:
                    yield RowStep(manifest.reference, made.step.name, "dropped", rule, self._find(twin))
            if place in dropped:
                return
            labels: tuple[RowLabel, ...] = ()
            if made.step.name == STEP:
                column = made.step.settings["column"]
                filled |= {column} if place in outcomes else set()
                labels = _labels_behind(self.catalog, made, row) if column in filled else ()
            found: RowOutcome = "changed" if place in outcomes else "kept"
            yield RowStep(manifest.reference, made.step.name, found, None, None, labels)

    def _find(self, row: str | None) -> FoundRow | None:
        """The newest version of a row that is left."""
        numbers = reversed(range(len(self.manifests))) if row is not None else ()
        found = (one for number in numbers for one in self._select(number, f"{ROW} = {quoted(str(row))}"))
        return next(found, None)

    def _select(self, number: int, condition: str) -> list[FoundRow]:
        manifest = self.manifests[number]
        column = _text_of(manifest)
        text = f"left({column}, {BEGINNING})" if column is not None else "NULL"
        source = SOURCE if SOURCE in manifest.columns else "NULL"
        rows = f"FROM rows_{number} WHERE {condition} ORDER BY {ROW} LIMIT {MOST_FOUND + 1}"
        found = self.connection.execute(f"SELECT {ROW}, {source}, {text} {rows}").fetchall()
        return [FoundRow(row, source, text, manifest.reference) for row, source, text in found]


def _text_of(manifest: Manifest) -> str | None:
    """SQL for the text of a row: of a chat its JSON, with characters in place of their escapes. None without texts."""
    if manifest.kind == "chat":
        return f"coalesce(TRY(json({CHAT}))::VARCHAR, {CHAT})"
    return "text" if "text" in manifest.columns else None


def _labels_behind(catalog: Catalog, manifest: Manifest, row: str) -> tuple[RowLabel, ...]:
    """The labels that people have given to a row of a version that `aifx data label apply` made."""
    if catalog.local is None:
        return ()
    entries = read_entries(label_file(catalog, manifest.name, manifest.step.settings["column"]))
    of_row = LabelState(entry for entry in entries if entry.row == row).by_row.get(row, {})
    labelled = (entry for entry in of_row.values() if entry.label is not None)
    return tuple(RowLabel(str(one.label), one.labeller, one.time, one.note) for one in labelled)
