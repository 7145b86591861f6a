"""Rows of a table or a query as a source: one snapshot of the database, kept in a file while it is scored.

A position is the value of a column that grows, or of a table of PostgreSQL the horizon of the snapshot: the oldest
transaction that had not ended. What it wrote, and what later ones wrote, is read again.
"""

from __future__ import annotations

import marshal
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import RecordBatch, Schema, Table

from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.os_errors import first_line
from aifx.core.parsing import parse_json
from aifx.core.progress import Reporter, report_progress
from aifx.curation.databases.postgresql import PostgresSnapshot, asking, connection_to
from aifx.curation.databases.push import Target as DatabaseTable
from aifx.curation.databases.push import parse_target
from aifx.curation.databases.query import DatabaseUrl, Query, parse_database_url
from aifx.data.base import DataFormat
from aifx.data.readers.columnar import CHECK, REASONS
from aifx.data.readers.rows import Row
from aifx.data.versions.sql import check_selection, identifier, quoted
from aifx.feedback.scoring.connections import DIALECTS, file_errors, open_file
from aifx.feedback.scoring.sources import Source

PIECE_ROWS = 4096
FARTHEST = 1 << 30
"""Transactions after which a position is too old: `xmin` has 32 bits, of which one half is the past."""


@dataclass(frozen=True)
class Selection:
    """The rows of a database to score.

    Attributes:
        table: None for a query.
        key: the column with a different value in each row.
        sql: of a query; "" for a table.
        growing: column whose values only grow; None for the horizon of PostgreSQL's snapshots.
        since_last: read from the position on.
    """

    url: DatabaseUrl
    table: DatabaseTable | None
    key: str
    sql: str = ""
    growing: str | None = None
    since_last: bool = False

    @property
    def name(self) -> str:
        """Without login."""
        return Query(self.url, self.sql).name if self.table is None else self.table.name

    def check(self) -> None:
        """Raise UsageError if no position can be kept."""
        if self.since_last and self.growing is None and (self.table is None or not self.url.is_postgresql):
            what = f"--since-last of {self.name} needs --growing"
            why = "only tables of PostgreSQL say which transaction wrote a row"
            raise UsageError(what, why, "--growing COLUMN, of a column whose values only grow")

    @contextmanager
    def open(self, position: Any) -> Iterator[DatabaseSource]:
        """The rows, which are read now. Raises UsageError, DataError, EnvironmentFault.

        Args:
            position: the one that was kept last; None if there is none.
        """
        is_same = position is not None and position.get("column") == self.growing
        kept = position if is_same else None
        with tempfile.TemporaryDirectory(prefix="aifx-score-") as folder:
            path = Path(folder, "rows")
            read = {"postgresql": _read_postgresql, "sqlite": _read_sqlite}.get(self.url.dialect, _read_duckdb)
            with report_progress(f"reading {self.name}", None, "rows") as progress:
                names, end = read(self, kept, path, progress)
            is_arrow = self.url.dialect != "sqlite"
            source = DatabaseSource(self.name, self.key, names, path, self.growing, is_arrow, end)
            if self.growing is not None:
                source.end = _check_growing(source, self.growing) or kept
            yield source

    def statement(self, condition: str) -> str:
        """The query of the rows that meet a condition, in the order of the column that grows."""
        rows = f"(\n{self.sql}\n)" if self.table is None else self.table.quoted()
        where = f" WHERE {condition}" if condition else ""
        order = f" ORDER BY t.{identifier(self.growing)}" if self.growing else ""
        return f"SELECT t.* FROM {rows} AS t{where}{order}"

    def check_growing(self, execute: Callable[[str], Any]) -> None:
        """Raise UsageError if there is no such column.

        Args:
            execute: runs a statement, and returns a cursor.
        """
        if self.growing is None:
            return
        names = [column[0] for column in execute(f"{replace(self, growing=None).statement('')} LIMIT 0").description]
        if self.growing not in names:
            what = f"{self.name} has no column {self.growing!r}"
            raise UsageError(what, did_you_mean(self.growing, names), f"--growing {names[0]}")

    def growing_condition(self, position: Any) -> str:
        """The condition of rows at the position or after it, or without a value, which is an error later."""
        if self.growing is None or position is None or not self.since_last:
            return ""
        name, value = f"t.{identifier(self.growing)}", position["value"]
        return f"({name} >= {value if isinstance(value, int) else quoted(value)} OR {name} IS NULL)"


@dataclass
class DatabaseSource(Source):
    """Rows that were read from a database.

    Attributes:
        names: of their columns.
        path: the file with the rows: Arrow's stream, or lists of rows of SQLite, whose values have types of their own.
    """

    name: str
    key: str
    names: list[str]
    path: Path
    growing: str | None
    is_arrow: bool
    end: Any = None

    def rows(self, form: DataFormat) -> Iterator[Row]:
        return self._rows()

    def keys(self, form: DataFormat) -> Iterator[tuple[Any, str]]:
        number, names = 0, self.names
        for (keys,) in self._pieces([self.key]) if self.key in names else ():
            for key in keys:
                number += 1
                yield key, f"{self.name}: row {number}"

    def columns(self, form: DataFormat) -> list[str]:
        return self.names

    def position_of(self, row: Row) -> Any:
        if self.growing is None:
            return None
        return {"column": self.growing, "value": _as_position(row.values[self.growing])}

    def tables(self) -> Iterator[Table]:
        """The rows as tables of one schema. Raises DataError for a column with values of several types."""
        if self.is_arrow:
            with pa.memory_map(str(self.path)) as file, pa.ipc.open_stream(file) as rows:
                yield rows.schema.empty_table()
                for batch in rows:
                    yield pa.Table.from_batches([batch])
            return
        try:
            made = [pa.table(piece, names=self.names).schema for piece in self._pieces(self.names)]
            schema = pa.unify_schemas(made, promote_options="permissive") if made else pa.schema([])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
            hint = "--query 'SELECT CAST(… AS TEXT) …'"
            raise DataError(f"{self.name}: a column has values of several types", first_line(e), hint) from None
        yield schema.empty_table()
        for piece in self._pieces(self.names):
            yield pa.table(piece, names=self.names).cast(schema)

    def _rows(self) -> Iterator[Row]:
        number, names = 0, self.names
        for columns in self._pieces(names):
            for values in zip(*columns, strict=True):
                number += 1
                yield Row(self.name, number, f"{self.name}: row {number}", dict(zip(names, values, strict=True)))

    def _pieces(self, names: Sequence[str]) -> Iterator[list[Sequence[Any]]]:
        """The values of columns, some thousand rows at a time."""
        if self.is_arrow:
            with pa.memory_map(str(self.path)) as file, pa.ipc.open_stream(file) as rows:
                for batch in rows:
                    for start in range(0, len(batch), PIECE_ROWS):
                        yield [batch.column(name).slice(start, PIECE_ROWS).to_pylist() for name in names]
            return
        places = [self.names.index(name) for name in names]
        with open(self.path, "rb") as file:
            while file.peek(1):
                piece = marshal.load(file)
                yield [[row[place] for row in piece] for place in places]


def _as_position(value: Any) -> Any:
    """A value of a column that grows, as JSON and SQL have it. Raises UsageError for a type without an order."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str | Decimal):
        return str(value)
    why = f"its values are {type(value).__name__}" if value is not None else "a row has no value there"
    raise UsageError("--growing names a column that does not grow", why, "--growing COLUMN, of numbers or times")


def select(url: str, key: str, sql: str | None, growing: str | None, since_last: bool) -> Selection:
    """The rows of the table that a URL names, or of a query of the database that it names. Raises UsageError."""
    if sql is None:
        table = parse_target(url, DIALECTS)
        found = Selection(table.url, table, key, "", growing, since_last)
    else:
        found = Selection(parse_database_url(url), None, key, sql.strip().rstrip(";"), growing, since_last)
        if found.url.dialect not in DIALECTS:
            why = f"it scores rows of {', '.join(DIALECTS)}"
            raise UsageError(f"aifx cannot score {found.url.dialect}", why, "aifx data add NAME URL --query SQL")
    found.check()
    return found


def _check_growing(source: DatabaseSource, growing: str) -> Any:
    """The position after the last row; None without rows. Raises DataError for a row without a value."""
    last = None
    for (values,) in source._pieces([growing]):
        if None in values:
            what, hint = (
                f"{source.name}: a row has no {growing!r}",
                f"ALTER TABLE … ALTER COLUMN {growing} SET NOT NULL",
            )
            raise DataError(what, "a row without a place in the order would be left out later", hint)
        last = values[-1]
    return None if last is None else {"column": growing, "value": _as_position(last)}


def _read_postgresql(selection: Selection, position: Any, path: Path, progress: Reporter) -> tuple[list[str], Any]:
    what = f"read {selection.name}"
    with connection_to(selection.url, what) as connection:
        with asking(what, ""):
            facts = _facts(connection, selection)
        with asking(what, "" if selection.table else "--query"), connection.cursor() as cursor:
            selection.check_growing(lambda sql: cursor.execute(sql) or cursor)
            connection.rollback()
        condition = selection.growing_condition(position)
        if selection.since_last and selection.growing is None and _is_near(facts, position):
            condition = newer_than(position["horizon"])
        with asking(what, "" if selection.table else "--query"):
            snapshot = PostgresSnapshot(connection, Query(selection.url, selection.statement(condition)))
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
                horizon = int(cursor.fetchone()[0])
            schema = pa.schema([field for field in snapshot.schema if field.name != CHECK])
            _write_arrow(path, schema, _checked(snapshot, selection.name), progress)
    return schema.names, facts and {"horizon": horizon, **facts["of"]}


def newer_than(horizon: int) -> str:
    """The condition of rows that a transaction with this number or a later one wrote. `xmin` has 32 bits."""
    return f"(t.xmin::text::bigint - {horizon % 2**32} + {2**32}) % {2**32} < {2**31}"


def _facts(connection: Any, selection: Selection) -> dict[str, Any] | None:
    """What a horizon is of; None for a query, and for what has no `xmin`. Raises UsageError for no table."""
    if selection.table is None:
        return None
    sql = (
        "SELECT c.oid::bigint, c.relkind::text, (SELECT system_identifier::text FROM pg_control_system()), "
        "(SELECT timeline_id FROM pg_control_checkpoint()), pg_snapshot_xmax(pg_current_snapshot())::text, "
        "EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) "
        "FROM pg_class AS c WHERE c.oid = to_regclass($1)"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, (selection.table.quoted(),))
        found = cursor.fetchone()
    if found is None:
        raise UsageError(f"there is no table {selection.name}", "the database has none of that name", "psql -c '\\d'")
    oid, kind, system, timeline, newest, has_children = found
    if kind not in ("r", "m") or has_children:  # a partition that is attached brings rows of old transactions
        if selection.since_last and selection.growing is None:
            why = "it is a view, has partitions, or is of another database: its rows do not say when they came"
            raise UsageError(f"--since-last of {selection.name} needs --growing", why, "--growing COLUMN")
        return None
    return {"newest": int(newest), "of": {"system": system, "timeline": timeline, "table": oid}}


def _is_near(facts: Mapping[str, Any] | None, position: Any) -> bool:
    """Whether a position is a horizon of the same table, and not too old."""
    if facts is None or position is None or "horizon" not in position:
        return False
    is_same = all(position.get(name) == value for name, value in facts["of"].items())
    return is_same and 0 <= facts["newest"] - position["horizon"] < FARTHEST


def _checked(snapshot: PostgresSnapshot, name: str) -> Iterator[RecordBatch]:
    """The rows without CHECK. Raises DataError for one that cannot be taken."""
    number = 0
    for batch in snapshot.read(None):
        if CHECK in batch.schema.names:
            wrong = pc.less(batch.column(CHECK), 0)
            if (at := pc.index(wrong, True).as_py()) >= 0:
                reason = parse_json(batch.schema.metadata[REASONS])[-1 - batch.column(CHECK)[at].as_py()]
                hint = "--query 'SELECT …' with other columns"
                raise DataError(f"{name}: row {number + at + 1} cannot be read", reason, hint)
            batch = batch.drop_columns([CHECK])
        number += len(batch)
        yield batch


def _read_duckdb(selection: Selection, position: Any, path: Path, progress: Reporter) -> tuple[list[str], Any]:
    what = f"read {selection.name}"
    connection = open_file(selection.url, what, read_only=True)
    try:
        with file_errors(what, "" if selection.table else "--query"):
            if selection.table is None:
                check_selection(connection, selection.sql, "--query 'SELECT …'")
            selection.check_growing(connection.execute)
            rows = connection.execute(selection.statement(selection.growing_condition(position))).to_arrow_reader(
                1 << 16
            )
            _write_arrow(path, rows.schema, rows, progress)
            return rows.schema.names, None
    finally:
        connection.close()


def _write_arrow(path: Path, schema: Schema, batches: Iterable[RecordBatch], progress: Reporter) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(None).cast(schema))
            progress.advance(len(batch))


def _read_sqlite(selection: Selection, position: Any, path: Path, progress: Reporter) -> tuple[list[str], Any]:
    what = f"read {selection.name}"
    connection = open_file(selection.url, what)
    try:
        with file_errors(what, "" if selection.table else "--query"), open(path, "wb") as file:
            connection.execute("PRAGMA query_only = ON")
            files = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)  # SQLite makes a file that is attached
            connection.set_authorizer(lambda act, *_: sqlite3.SQLITE_DENY if act in files else sqlite3.SQLITE_OK)
            selection.check_growing(connection.execute)
            rows = connection.execute(selection.statement(selection.growing_condition(position)))
            while piece := rows.fetchmany(PIECE_ROWS):
                marshal.dump(piece, file)
                progress.advance(len(piece))
            return [column[0] for column in rows.description], None
    finally:
        connection.close()
