"""The step that gives each row of a data set, an event, the newest row of another one that was known at its time.

DuckDB's ASOF join finds it: https://duckdb.org/docs/stable/guides/sql_features/asof_join. Both versions are read as
tables of a connection that writes to the disk what exceeds its memory. What it finds is written in the order of the
events, so that tasks append it to the shards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pyarrow import DataType, Schema, Table

from aifx.core.digests import Sha256
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.json_values import plain
from aifx.curation.step import DECISIONS, DecidedStep, Limits, Outcome, digest_of, first_rows, numbered_parts
from aifx.data.names import RESERVED, ROW, joined_row_column
from aifx.data.readers.arrow import pa, pq
from aifx.data.versions.catalog import JOIN
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import (
    NUMBERING,
    RowTable,
    batches_of,
    check_free,
    check_told_apart,
    identifier,
    open_tables,
    quoted,
)

BATCH_ROWS = 10_000
THREAD_BYTES = 256 << 20
"""Memory for a thread of DuckDB: each holds blocks of both sides of a join in it."""

FOUND = "00000.parquet"
EXAMPLE = "aifx data join orders prices --key product --asof time"

Kind: TypeAlias = Literal["text", "date", "time", "time with a zone", "whole number", "number", "truth value", "other"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TOLERANCE = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
_DATE = r"\d{4}-\d\d-\d\d"
_CLOCK = rf"{_DATE}[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?"
TEXTS: Mapping[str, Kind] = {
    _DATE: "date",
    _CLOCK: "time",
    rf"{_CLOCK} ?([Zz]|[+-]\d\d(:?\d\d)?)": "time with a zone",
}
"""Texts of ISO 8601 that are dates or times."""

_DAY_NS = 86_400_000_000_000


def parse_tolerance(text: str) -> tuple[float, bool]:
    """The largest age of a row that is joined, and whether it has a unit of time, in which case it is in seconds.

    Raises UsageError.
    """
    found = _TOLERANCE.fullmatch(text)
    if found is None or not math.isfinite(float(found[1])):
        why = "it is a number of the column's own unit, or of s, m, h, d or w (weeks)"
        raise UsageError(f"--tolerance {text!r} cannot be used", why, "--tolerance 7d")
    number, unit = found.groups()
    return float(number) * _UNITS_S.get(unit, 1), bool(unit)


def parse_asof(text: str, events: Version, features: Version) -> tuple[str, str]:
    """The columns with the times of the events and of the features. Raises UsageError.

    Args:
        text: one column of both, or EVENT_TIME:FEATURE_TIME.
    """
    one, colon, other = text.partition(":")
    if not colon or (text in events.manifest.columns and text in features.manifest.columns):
        one = other = text
    return one, other


@dataclass(frozen=True)
class Join(DecidedStep):
    """Appends columns of the newest row of the features that has the event's keys and is not later than it.

    Its parents are the events and the features. Of several rows with the same keys and time, the last is meant.

    Attributes:
        key: columns of both that must be equal; none for one series of features.
        event_time, feature_time: columns with the times.
        columns: of the features; all but the keys if None.
        tolerance: largest age of a row that is joined, such as "7d".
        strictly_before: whether a row of the event's own time is too late.
        prefix: of the names of the joined columns.
    """

    key: tuple[str, ...]
    event_time: str
    feature_time: str
    columns: tuple[str, ...] | None = None
    tolerance: str | None = None
    strictly_before: bool = False
    prefix: str | None = None

    name = JOIN

    @property
    def events(self) -> Version:
        return self.parents[0]

    @property
    def features(self) -> Version:
        return self.parents[1]

    @property
    def own_features(self) -> str | None:
        """The features of which this join made the events, if it did: a command that is repeated.

        A repeated join of a data set with itself also reads its own result as the features.
        """
        made, read = self.events.manifest, self.features.manifest.whole_reference
        if made.step.name != JOIN or plain(made.step.settings) != plain(self.settings):
            return None
        parent, features = made.row_parents
        is_same = read == features or (read == made.whole_reference and parent == features)
        return features if is_same else None

    @cached_property
    def joined(self) -> dict[str, str]:
        """The names of the joined columns by those of the features: `_row`, the time and the chosen columns.

        A name that the events have gets the name of the features' data set before it.
        """
        manifest, taken = self.features.manifest, {name.lower() for name in self.events.manifest.columns}
        chosen = self.columns if self.columns is not None else [n for n in manifest.columns if n not in RESERVED]
        own = [name for name in chosen if name not in (*self.key, self.feature_time)]
        prefix = f"{manifest.name}_" if self.prefix is None else self.prefix
        names = {ROW: joined_row_column(manifest.name, self.prefix)}
        for name in (self.feature_time, *own):
            names[name] = f"{prefix}{name}" if self.prefix is not None or name.lower() in taken else name
        return names

    def check(self) -> None:
        """Raise UsageError for columns that are missing, or that cannot be compared or named, DataError for none."""
        for version in self.parents:
            if not version.shards:
                raise DataError(f"{version.reference} has no rows", "nothing can be joined", "aifx data ls")
        for version, time in ((self.events, self.event_time), (self.features, self.feature_time)):
            chosen = (self.columns or ()) if version is self.features else ()
            for name in (*self.key, time, *chosen):
                if name not in version.manifest.columns:
                    why = did_you_mean(name, version.manifest.columns)
                    hint = f"aifx data show {version.manifest.name}"
                    raise UsageError(f"{version.reference} has no column {name!r}", why, hint)
            check_free(version, NUMBERING)
            read = self.joined if version is self.features else ()
            check_told_apart((*self.key, time, *read), version.manifest)
        before, after = (schema_of(version) for version in self.parents)
        for name in self.key:
            kinds = kind_of(before.field(name).type), kind_of(after.field(name).type)
            if kinds[0] != kinds[1] or kinds[0] in ("other", "number"):
                why = f"{self.events.reference} holds {before.field(name).type}, and {self.features.reference} "
                why += f"{after.field(name).type}; keys are texts, whole numbers, dates, times or truth values of both"
                raise UsageError(f"--key {name}: its values cannot be compared", why, _convert(self.features, name))
        taken = {name.lower() for name in self.events.manifest.columns}
        for name in self.joined.values():
            if name.lower() in taken:
                why = "each column of a version has a name of its own"
                raise UsageError(f"two columns would be named {name!r}", why, "--prefix NAME_")
            taken.add(name.lower())

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        self.check()
        (work / DECISIONS).mkdir()
        schema = schema_of(self.features)
        fields = [schema.field(name).with_name(joined) for name, joined in self.joined.items()]
        schema = pa.schema([pa.field("row", pa.int64()), *fields])
        matched = 0
        tables = {"events": RowTable(self.events), "features": RowTable(self.features)}
        with (
            open_tables(tables, limits.spare_bytes // 2, THREAD_BYTES) as connection,
            pq.ParquetWriter(work / DECISIONS / FOUND, schema, compression="zstd") as writer,
        ):
            find, read = self._sql(connection)
            connection.execute(find)
            for batch in batches_of(connection.sql(read).to_arrow_reader(BATCH_ROWS)):
                found = [
                    pa.nulls(len(batch)) if pa.types.is_null(field.type) else column.cast(field.type)
                    for field, column in zip(schema, batch.columns, strict=True)
                ]
                matched += len(batch) - found[1].null_count
                writer.write_table(pa.Table.from_arrays(found, schema=schema))
        return {"matched": matched, "unmatched": self.events.manifest.rows - matched}

    def task_inputs(self, task: int, work: Path) -> Any:
        shard = self.events.manifest.shards[task]
        digest = Sha256()
        with self._found(task, work) as read:
            for start in range(0, shard.rows, BATCH_ROWS):
                digest.update(digest_of(read(start, min(BATCH_ROWS, shard.rows - start)).drop(["row"])).encode())
        return [self.kind, shard.sha256, digest.hexdigest()]

    def decided_rows(
        self, task: int, work: Path, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Table, Table]]:
        """The rows of a shard with what was found for them, some at a time: each row has as much as itself."""
        with self._found(task, work) as read:
            for number, rows in numbered_parts(self.events.shards[task], columns):
                yield rows, read(number, len(rows))

    @contextmanager
    def _found(self, task: int, work: Path) -> Iterator[Callable[[int, int], Table]]:
        """A function that reads what was found for a number of rows of a shard, from a row on."""
        begin = int(self.first_rows[task])
        with pq.ParquetFile(work / DECISIONS / FOUND) as found:
            sizes = [found.metadata.row_group(group).num_rows for group in range(found.num_row_groups)]
            firsts = np.cumsum([0, *sizes])

            def read(number: int, count: int) -> Table:
                start = begin + number
                group, last = np.searchsorted(firsts, (start, start + max(count, 1) - 1), "right") - 1
                part = found.read_row_groups(list(range(group, last + 1)), use_threads=False)
                return part.slice(start - int(firsts[group]), count)

            yield read

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        for name in self.joined.values():
            rows = rows.append_column(name, decisions[name].combine_chunks())
        return Outcome(rows)

    def _sql(self, connection: Any) -> tuple[str, str]:
        """SQL that finds the newest row for each event, and SQL that reads these rows in the order of the events.

        The former looks at keys, times and numbers of rows alone. It is over before the latter begins, so that the two
        do not share the memory.
        """
        event_time, feature_time, is_time = self._times(connection)
        key = [identifier(name) for name in self.key]
        keys = "".join(f", {name} AS k{n}" for n, name in enumerate(key))
        groups = "".join(f"k{n}, " for n in range(len(key)))
        is_equal = "".join(f"e.k{n} = f.k{n} AND " for n in range(len(key)))
        later = ">" if self.strictly_before else ">="
        found = "f.p"
        if self.tolerance is not None:
            amount, has_unit = parse_tolerance(self.tolerance)
            if has_unit != is_time:
                column = f"the column {self.event_time!r} holds {'times' if is_time else 'numbers'}"
                hint = "--tolerance 7d" if is_time else "--tolerance 7"
                raise UsageError(f"--tolerance {self.tolerance} cannot be used", column, hint)
            most = f"{round(amount * 10**9)}::HUGEINT" if is_time else f"{amount}::DOUBLE"
            found = f"CASE WHEN e.t - f.t <= {most} THEN f.p END"
        columns = ", ".join(f"{identifier(name)} AS c{n}" for n, name in enumerate(self.joined))
        find = f"""
            CREATE TEMP TABLE newest AS
            WITH e AS (SELECT {row_number(self.events)} AS n, {event_time} AS t{keys} FROM {_files(self.events)}),
            f AS (
                SELECT {groups}t, max(p) AS p
                FROM (SELECT {row_number(self.features)} AS p, {feature_time} AS t{keys} FROM {_files(self.features)})
                WHERE t IS NOT NULL GROUP BY ALL
            )
            SELECT e.n, {found} AS p FROM e ASOF LEFT JOIN f ON {is_equal}e.t {later} f.t"""
        read = f"""
            WITH r AS (SELECT {row_number(self.features)} AS p, {columns} FROM {_files(self.features)})
            SELECT newest.n, r.* EXCLUDE (p) FROM newest LEFT JOIN r ON r.p = newest.p ORDER BY newest.n"""
        return find, read

    def _times(self, connection: Any) -> tuple[str, str, bool]:
        """SQL for the times of events and features as numbers, and whether these are nanoseconds. Raises UsageError."""
        sides = (
            TimeColumn.find(connection, "events", self.events, self.event_time),
            TimeColumn.find(connection, "features", self.features, self.feature_time),
        )
        kinds = [side.kind for side in sides]
        numbers = {"whole number", "number"}
        if numbers.issuperset(kinds):
            exact = set(kinds) == {"whole number"}
            sql = [f"{side.sql}::HUGEINT" if exact else f"nullif({side.sql}::DOUBLE, 'NaN')" for side in sides]
            return sql[0], sql[1], False
        if kinds[0] != kinds[1] or kinds[0] not in ("date", "time", "time with a zone"):
            named = zip(self.parents, sides, strict=True)
            why = ", and ".join(f"{one.reference} holds {side.held_by(one)} in {side.column!r}" for one, side in named)
            if {"time", "time with a zone"} == set(kinds):
                why += ": without a zone, aifx cannot know which of two times is later"
            elif "date" in kinds:
                why += ": on a day, aifx cannot know which of the two is later"
            raise UsageError("the times cannot be compared", why, _convert(self.features, self.feature_time))
        return sides[0].nanoseconds, sides[1].nanoseconds, True


@dataclass(frozen=True)
class TimeColumn:
    """A column with times.

    Attributes:
        sql: the column, parsed if it holds texts.
        is_ns: whether DuckDB keeps nanoseconds of it.
    """

    column: str
    kind: Kind
    sql: str
    is_ns: bool = False

    @classmethod
    def find(cls, connection: Any, table: str, version: Version, column: str) -> TimeColumn:
        """The column of a table of the connection. Raises UsageError for texts that cannot be compared.

        Args:
            version: with the rows of the table.
        """
        type_ = schema_of(version).field(column).type
        kind, name = kind_of(type_), identifier(column)
        if kind != "text":
            return cls(column, kind, name, pa.types.is_timestamp(type_) and type_.unit == "ns")
        tests = [f"WHEN regexp_full_match({name}, {quoted(text)}) THEN {quoted(of)}" for text, of in TEXTS.items()]
        parsed = {of: _parsed(name, of) for of in TEXTS.values()}
        checks = " ".join(f"WHEN {quoted(of)} THEN {sql} IS NOT NULL" for of, sql in parsed.items())
        found = connection.execute(
            f"""SELECT CASE WHEN CASE "as" {checks} END THEN "as" END, count(*), min({ROW}), arg_min({name}, {ROW})
            FROM (SELECT {ROW}, {name}, CASE {" ".join(tests)} END AS "as" FROM {table} WHERE {name} IS NOT NULL)
            GROUP BY 1 ORDER BY 2 DESC"""
        ).fetchall()
        if not found:
            return cls(column, "time", "NULL::TIMESTAMP")
        hint = _convert(version, column)
        for of, _, row, text in found:
            if of is None:
                what = f"{column!r} of row {row} of {version.reference} is no time: {text[:80]!r}"
                raise UsageError(what, "a text that is a time is of ISO 8601, such as 2024-05-01T09:30:00Z", hint)
        if len(found) > 1:
            kinds = " and ".join(f"a {of} ({text!r} of row {row})" for of, _, row, text in found[:2])
            what = f"the times in {column!r} of {version.reference} cannot be compared"
            raise UsageError(what, f"it holds {kinds}", hint)
        return cls(column, found[0][0], parsed[found[0][0]])

    def held_by(self, version: Version) -> str:
        """The kind of values of a version, for people."""
        return (
            f"a {self.kind}"
            if self.kind != "other"
            else f"values of the type {schema_of(version).field(self.column).type}"
        )

    @property
    def nanoseconds(self) -> str:
        """SQL for the nanoseconds since 1970, in which times far from now have room, too."""
        if self.kind == "date":
            return f"({self.sql} - DATE '1970-01-01')::HUGEINT * {_DAY_NS}"
        return f"epoch_ns({self.sql})::HUGEINT" if self.is_ns else f"epoch_us({self.sql})::HUGEINT * 1000"


def _parsed(name: str, kind: Kind) -> str:
    """SQL for the dates or times that texts are; null for one that is none, such as of a 13th month."""
    sql_type = {"date": "DATE", "time": "TIMESTAMP", "time with a zone": "TIMESTAMPTZ"}[kind]
    offset = r"' ?([+-]\d\d):?(\d\d)$', '\1:\2'" if kind == "time with a zone" else "' $', ''"
    return f"TRY_CAST(regexp_replace(replace({name}, ',', '.'), {offset}) AS {sql_type})"


def kind_of(type_: DataType) -> Kind:
    """The kind of a column's values, which are compared with those of the same kind."""
    types = pa.types
    if types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if types.is_timestamp(type_):
        return "time" if type_.tz is None else "time with a zone"
    tests: Sequence[tuple[Any, Kind]] = (
        (types.is_string, "text"),
        (types.is_large_string, "text"),
        (types.is_date, "date"),
        (types.is_integer, "whole number"),
        (types.is_floating, "number"),
        (types.is_decimal, "number"),
        (types.is_boolean, "truth value"),
    )
    return next((kind for test, kind in tests if test(type_)), "other")


def schema_of(version: Version) -> Schema:
    return pq.read_schema(version.shards[0]).remove_metadata()


def _files(version: Version) -> str:
    files = ", ".join(quoted(str(file)) for file in version.shards)
    return f"read_parquet([{files}])"


def row_number(version: Version) -> str:
    """SQL for the number of a row over all shards, from 0, by columns that DuckDB adds."""
    firsts = ", ".join(map(str, first_rows(version.manifest.shards)[:-1].tolist()))
    return f"file_row_number + ([{firsts}]::BIGINT[])[file_index::BIGINT + 1]"


def _convert(version: Version, column: str) -> str:
    query = f"SELECT * REPLACE (… AS {identifier(column)}) FROM data"
    return f"aifx data query {version.manifest.name} '{query}' --output FILE makes a file with another column to add"
