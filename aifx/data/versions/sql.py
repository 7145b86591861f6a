"""Rows of versions as tables of DuckDB, for reading alone: a query sees these files, no other and no network."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aifx.core.artifact import SealedFile, missing_file
from aifx.core.errors import DataError, EnvironmentFault, UsageError
from aifx.core.lifecycle import hear_signals, interrupt_of
from aifx.core.os_errors import first_line
from aifx.core.parsing import check_utf8
from aifx.data.names import ROW, SOURCE
from aifx.data.versions.manifest import Manifest, Version

MEMORY_BYTES = 2 << 30
THREAD_BYTES = 32 << 20
"""Memory for the buffers of a thread of DuckDB."""

INTERRUPT_EVERY_S = 0.1

NUMBERING = ("file_index", "file_row_number")
"""Columns that number the rows of a table that `is_numbered`."""

DROPPED_COLUMNS = ("_row", "rule", "twin")
QUARANTINE_COLUMNS = ("source", "line", "reason", "value")


@dataclass(frozen=True)
class RowTable:
    """A table of a connection: the rows of a version, or those that it left out or could not read.

    Attributes:
        is_numbered: add the columns `file_index` and `file_row_number`, from 0.
    """

    version: Version
    part: Literal["shards", "dropped", "quarantine"] = "shards"
    is_numbered: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(getattr(self.version, self.part))

    def check(self) -> None:
        """Raise DataError for a file that is missing or has not the size that the manifest has.

        Raise UsageError for a column with the name of one that is added.
        """
        if self.is_numbered:
            check_free(self.version, NUMBERING)
        for file, path in zip(getattr(self.version.manifest, self.part), self.files, strict=True):
            if why := missing_file(path.parent, {path.name: SealedFile(file.bytes, file.sha256)}):
                reference = self.version.reference
                raise DataError(f"{path.parent}/{why}", f"{reference} lists it", f"aifx data verify {reference}")

    @property
    def columns(self) -> tuple[str, ...]:
        known = {"dropped": DROPPED_COLUMNS, "quarantine": QUARANTINE_COLUMNS}
        return known.get(self.part) or tuple(self.version.manifest.columns) or (ROW, SOURCE)

    @property
    def selection(self) -> str:
        """SQL for the rows."""
        if not self.files:
            return f"SELECT {', '.join(f'NULL::VARCHAR AS {identifier(name)}' for name in self.columns)} WHERE false"
        columns = "file_index, file_row_number, *" if self.is_numbered else "*"
        return f"SELECT {columns} FROM read_parquet([{', '.join(quoted(str(file)) for file in self.files)}])"


def same_in_sql(name: str, names: Iterable[str]) -> str | None:
    """Another of these names that DuckDB takes for `name`: it differs in the case of letters alone."""
    return next((one for one in names if one != name and one.lower() == name.lower()), None)


def check_told_apart(names: Iterable[str], manifest: Manifest) -> None:
    """Raise UsageError if DuckDB takes one of these columns for another one of a version."""
    for name in names:
        if (other := same_in_sql(name, manifest.columns)) is not None:
            what = f"columns {name!r} and {other!r} of {manifest.reference} differ in the case of letters alone"
            raise UsageError(what, "DuckDB takes them for one", "rename one in the files, and add these")


def check_free(version: Version, names: Collection[str]) -> None:
    """Raise UsageError if a version has a column with one of these names, which SQL of aifx gives to its own.

    DuckDB takes names that differ in the case of letters alone for one.
    """
    for name in version.manifest.columns:
        if name.lower() in names:
            why = f"aifx numbers its rows by columns of the names {' and '.join(sorted(names))}"
            select = f"SELECT * EXCLUDE ({identifier(name)}), {identifier(name)} AS other FROM data"
            hint = f"aifx data query {version.manifest.name} '{select}' --output FILE writes a file to add"
            raise UsageError(f"{version.reference} has a column {name!r}", why, hint)


@contextmanager
def open_tables(
    tables: Mapping[str, RowTable], memory_bytes: int = MEMORY_BYTES, thread_bytes: int = THREAD_BYTES
) -> Iterator[Any]:
    """A connection that has these tables and may read nothing else. What exceeds the memory goes to a temporary folder.

    Args:
        thread_bytes: memory for each thread; there is at least one, and at most one per core.

    Raises DataError for damaged or missing files, EnvironmentFault if a query needs more memory or disk than there is.
    """
    import duckdb

    for table in tables.values():
        table.check()
    with tempfile.TemporaryDirectory(prefix="aifx-sql-") as spill:
        threads = max(1, min(len(os.sched_getaffinity(0)), memory_bytes // thread_bytes))
        config: dict[str, Any] = {
            "memory_limit": f"{memory_bytes >> 20}MiB",
            "temp_directory": spill,
            "threads": threads,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with duckdb.connect(":memory:", config=config) as connection, stopped_by_signals(connection):
            try:
                files = [str(file) for table in tables.values() for file in table.files]
                connection.execute(f"SET allowed_paths = [{', '.join(map(quoted, files))}]")
                for name, table in tables.items():
                    connection.execute(f"CREATE VIEW {identifier(name)} AS {table.selection}")
                connection.execute("SET TimeZone = 'UTC'")  # so that a machine's own does not change what SQL finds
                connection.execute("SET enable_progress_bar = false")  # on stdout, after two seconds
                connection.execute("SET python_enable_replacements = false")
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
                yield connection
            except duckdb.OutOfMemoryException as e:
                raise not_enough_memory(e) from None
            except duckdb.IOException as e:
                what = "the query could not read the rows or write what exceeds the memory"
                raise EnvironmentFault(what, first_line(e), f"df -h {Path(spill).parent}") from None
            except duckdb.InterruptException:
                raise KeyboardInterrupt from None
            except duckdb.Error as e:  # not of SQL that a user wrote: the caller has caught that
                references = sorted({table.version.reference for table in tables.values()})
                what, hint = f"the rows of {', '.join(references)} cannot be read", f"aifx data verify {references[0]}"
                raise DataError(what, first_line(e), hint) from None


def batches_of(reader: Any) -> Iterator[Any]:
    """The batches of a query's pyarrow.RecordBatchReader. Raises duckdb.Error: Arrow's stream has its text alone."""
    import duckdb

    try:
        yield from reader
    except OSError as e:
        kind = duckdb.OutOfMemoryException if str(e).startswith("Out of Memory Error") else duckdb.Error
        raise kind(str(e)) from None


@contextmanager
def stopped_by_signals(connection: Any) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a query: Python handles signals between its own instructions, and a query is one of
    them, however long it takes."""
    received: list[int] = []
    is_over = threading.Event()

    def stop(number: int) -> None:
        received.append(number)
        connection.interrupt()
        while not is_over.wait(INTERRUPT_EVERY_S):  # DuckDB forgets an interrupt when a query starts
            connection.interrupt()

    with hear_signals(stop):
        try:
            yield
        except Exception:  # DuckDB raises more than one type for a query that is interrupted
            if received:
                raise interrupt_of(received[0]) from None
            raise
        finally:
            is_over.set()


def not_enough_memory(error: Exception) -> EnvironmentFault:
    """A query that needs more memory than it may use."""
    hint = "give it more --memory, or select fewer rows or columns"
    return EnvironmentFault("the query needs more memory than it may use", first_line(error), hint)


def identifier(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def open_selection(version: Version, sql: str, memory_bytes: int, *, hides_values: bool = False) -> Iterator[Any]:
    """The duckdb.DuckDBPyRelation of a user's SELECT over the rows of a version, as table `data` or `rows`.

    Args:
        hides_values: keep values of rows out of errors.

    Raises UsageError for SQL that is not one SELECT or cannot be run, and what `open_tables` raises.
    """
    import duckdb

    hint = f"aifx data query {version.reference} 'DESCRIBE data'"
    with open_tables({"data": RowTable(version), "rows": RowTable(version)}, memory_bytes) as connection:
        try:
            check_selection(connection, sql, hint)
            yield connection.sql(sql)
        except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException):
            raise
        except duckdb.Error as e:
            raise sql_error(e, hint, hides_values=hides_values) from None


def check_selection(connection: Any, sql: str, hint: str) -> None:
    """Raise UsageError unless `sql` is one statement that only reads; duckdb.Error if it cannot be run."""
    import duckdb

    check_utf8("SQL", sql)
    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        why = "it is empty" if not kinds else f"it is {', '.join(kind.lower() for kind in kinds)}"
        raise UsageError("the SQL is not one SELECT", why, hint)
    within = f"SELECT * FROM (\n{statements[0].query.strip().rstrip(';')}\n)"
    try:  # the WITH clause of a SELECT may write files, but not within another SELECT
        connection.execute(f"EXPLAIN {within}")
    except duckdb.BinderException as e:
        if "must be at the top level" in str(e):
            raise UsageError("the SQL is not one SELECT", "its WITH clause writes", hint) from None
        raise


def sql_error(error: Exception, hint: str, *, hides_values: bool = False) -> UsageError:
    """DuckDB's complaint about a user's SQL, which may quote a value that it could not convert."""
    import duckdb

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(("LINE ", "^")))
    names_columns = isinstance(error, duckdb.BinderException | duckdb.ParserException | duckdb.CatalogException)
    if not names_columns and hides_values:
        text = f"{type(error).__name__}, whose text may have values of rows"
    return UsageError("the SQL cannot be run", text[:400], hint)
