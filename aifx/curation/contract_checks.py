"""`aifx data expect`: the rules of a contract judged by DuckDB, and the version without the rows that broke one."""

# All conditions of single rows are judged in one query over the shards, which reads the columns that they name. Rows
# that break a rule are few, as a rule: their numbers go into the table `broken`, and those to leave out into `dropped`.
# Then each rule `unique` looks at the rows that are left, and another query computes all that is about the whole
# version without the dropped rows. So the version that is made keeps every rule of the level "error".

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import Table

from aifx.core.errors import AifxError, ConfigError, UsageError, did_you_mean
from aifx.curation.contracts import FACT, MOST_IDS, REFERENCE, STEP, Expectation, has_type
from aifx.curation.drift import LEAST_ROWS, binned, jensen_shannon, ks, psi
from aifx.curation.planned import PlannedVersion
from aifx.curation.step import DecidedStep, Limits, Outcome, first_rows, without_dropped, write_decisions
from aifx.data.names import ROW
from aifx.data.versions.catalog import Catalog, check_own_rows
from aifx.data.versions.manifest import Manifest, Version
from aifx.data.versions.sql import (
    RowTable,
    check_free,
    check_selection,
    check_told_apart,
    identifier,
    open_tables,
    quoted,
    sql_error,
)

NUMBER, FIRST, TWIN = "__number", "__first", "__twin"
"""Columns with the number of a row over all shards, and of its key the number and the id of the first row."""

SAMPLE_ROWS = 100_000
MOST_VALUES = 1000
"""Most values of a column whose distribution is measured by value."""

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
            "FLOAT", "DOUBLE", "DECIMAL")  # fmt: skip
DECISION_ROWS = 1 << 20
_DECISIONS = pa.schema([("row", pa.int64()), ("rule", pa.string()), ("twin", pa.string())])

CURRENT_TIMES = ("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp")
"""Keywords of SQL that are values of the time of the query."""

CHANGING_FUNCTIONS = (
    *CURRENT_TIMES, "now", "today", "random", "get_current_time", "get_current_timestamp", "transaction_timestamp",
    "current_localtime", "current_localtimestamp", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "setseed", "nextval",
    "sleep_ms", "txid_current", "version", "current_setting", "getvariable",
)  # fmt: skip
"""Functions of SQL that give other values to the same rows later."""


@dataclass(frozen=True)
class Expect(DecidedStep):
    """Leaves out the rows that break rules of the level "error", and records the result of each rule.

    Attributes:
        rules: with whole references to other data sets.
        others: versions by the references of rules.
    """

    rules: tuple[Expectation, ...]
    others: Mapping[str, Version] = field(default_factory=dict)

    name = STEP
    only_drops = True

    @property
    def task_settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"rules": [rule.settings for rule in self.rules]}

    @cached_property
    def unjudged(self) -> Mapping[int, str]:
        """Notes about rules of columns that have another type than a rule `type` of the level "error" allows.

        Such a version is refused, and other rules of the column need not make sense.
        """
        columns = self.parents[0].manifest.columns
        checked = [rule for rule in self.rules if rule.check == "type" and rule.level == "error"]
        wrong = {rule.column[0] for rule in checked if not has_type(columns[rule.column[0]], rule.type)}
        others = ((n, wrong.intersection(rule.columns)) for n, rule in enumerate(self.rules) if rule.check != "type")
        return {n: " and ".join(f"{name} is {columns[name]}" for name in sorted(names)) for n, names in others if names}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        _check_rows(self.parents[0])
        return {FACT: _judge(self, work, limits)}

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        return without_dropped(rows, decisions, "twin")


def expect(version: Version, rules: Sequence[Expectation], catalog: Catalog, where: str) -> Expect:
    """The step that judges a version. Reads no row.

    Args:
        where: file of the rules, for messages.

    Raises ConfigError for a rule that the version cannot have, UsageError for a data set that there is not.
    """
    check_own_rows(version.manifest, f"aifx data {STEP}")
    _check_rows(version.first or version if isinstance(version, PlannedVersion) else version)
    check_free(version, (NUMBER, FIRST, TWIN))
    others: dict[str, Version] = {}
    resolved = []
    for rule in rules:
        with _naming(rule, where):
            _check_columns(rule.columns, version.manifest)
            known = {}
            for key in ("to", "against"):
                if text := getattr(rule, key):
                    other = _open_other(text, version.manifest.name, catalog)
                    _check_columns(rule.to_column or rule.column, other.manifest)
                    known[key] = other.manifest.whole_reference
                    others[known[key]] = other
            resolved.append(rule.model_copy(update=known))
    step = Expect((version,), tuple(resolved), others)
    with _connected(step, 256 << 20) as connection:
        for number, rule in enumerate(step.rules):
            if number not in step.unjudged:
                with _naming(rule, where):
                    _check_types(rule, version.manifest.columns)
                    _check_sql(rule, step, connection)
    return step


def _check_rows(version: Version) -> None:
    if not version.shards:
        raise UsageError(f"{version.reference} has no rows", "there is nothing to judge", "aifx data ls")


def _open_other(reference: str, own: str, catalog: Catalog) -> Version:
    if reference == own:
        why = "a name means another version after each run"
        raise UsageError(f"{reference!r} names the data set itself", why, f"name a version, such as {own}@3f2a")
    version = catalog.open(reference)
    check_own_rows(version.manifest, f"aifx data {STEP}")
    return version


@contextmanager
def _naming(rule: Expectation, where: str) -> Iterator[None]:
    try:
        yield
    except AifxError as e:
        e.what = f"{where}: rule {rule.name}: {e.what}"
        raise


def _check_columns(names: Sequence[str], manifest: Manifest) -> None:
    for name in names:
        if name not in manifest.columns:
            what = f"no column {name!r} in {manifest.reference}"
            raise ConfigError(what, did_you_mean(name, manifest.columns), f"aifx data profile {manifest.reference}")
    check_told_apart(names, manifest)


_NEEDED = {"matches": ("text",), "length": ("text", "list", "binary"), "freshness": ("time", "text", "number")}


def _check_types(rule: Expectation, columns: Mapping[str, str]) -> None:
    needed = _NEEDED.get(rule.check, ())
    for name in rule.column if needed else ():
        if not any(has_type(columns[name], one) for one in needed):
            raise ConfigError(f"column {name!r} is {columns[name]}", f"{rule.check} is for {needed[0]}", REFERENCE)
    if rule.check in ("range", "values") and has_type(type := columns[rule.column[0]], "text"):
        for value in (*rule.bounds.values(), *rule.values):
            if not isinstance(value, str):
                raise ConfigError(f"column {rule.column[0]!r} is {type}", f"{value!r} is no text", REFERENCE)
    if rule.check == "no_later_than":
        both = (rule.column[0], rule.other)
        kinds = {"number" if has_type(columns[name], "number") else _time_kind(columns[name]) for name in both}
        if len(kinds) > 1 or None in kinds:
            what = ", and ".join(f"{name!r} is {columns[name]}" for name in both)
            raise ConfigError(what, "it compares two times, texts with times, or two numbers", REFERENCE)


def _time_kind(type: str) -> str | None:
    return "time" if has_type(type, "time") or has_type(type, "text") else None


@contextmanager
def _connected(step: Expect, memory_bytes: int) -> Iterator[Any]:
    """A connection with the rows as the view `data`, with their numbers as `numbered`, and those of others."""
    version = step.parents[0]
    tables = {_table(reference): RowTable(other) for reference, other in step.others.items()}
    planned = version.schema if isinstance(version, PlannedVersion) and version.first is not None else None
    if planned is None:
        tables |= {"data": RowTable(version), "places": RowTable(version, is_numbered=True)}
    with open_tables(tables, memory_bytes) as connection:
        if planned is not None:
            connection.register("data", planned.empty_table())
            connection.execute("CREATE VIEW places AS SELECT 0 AS file_index, 0 AS file_row_number, * FROM data")
        firsts = first_rows(version.manifest.shards)[:-1].tolist()
        first = f"list_extract(CAST({firsts} AS BIGINT[]), CAST(file_index + 1 AS BIGINT))"
        connection.execute(
            f"""CREATE VIEW numbered AS SELECT * EXCLUDE (file_index, file_row_number),
            {first} + file_row_number AS {NUMBER} FROM places"""
        )
        yield connection


def _table(reference: str) -> str:
    return f"other_{reference}"


def _check_sql(rule: Expectation, step: Expect, connection: Any) -> None:
    """Raise ConfigError or UsageError for a rule that DuckDB cannot evaluate, before it reads rows."""
    import duckdb

    hint = f"aifx data query {step.parents[0].reference} 'DESCRIBE data'"
    try:
        if rule.sql:
            _check_alone(rule.sql, connection, hint)
            _check_lasting(rule.sql, connection)
        if rule.check == "matches":
            connection.execute("SELECT regexp_matches('', ?)", [rule.pattern])
        if rule.check in ("range", "values"):
            _check_texts(rule, step.parents[0].manifest.columns, connection)
        if (condition := _condition(rule, step)) is not None:
            check_selection(connection, f"SELECT {NUMBER}, NOT ({condition}\n) FROM numbered", hint)
        elif rule.check == "aggregate":
            check_selection(connection, f"SELECT count(*), {_aggregate(rule)} FROM data", hint)
        elif rule.check == "distribution":
            for table in ("data", identifier(_table(rule.against))):
                check_selection(connection, f"SELECT {ROW}, ({_measured(rule)}\n) FROM {table}", hint)
            if rule.measure == "ks" and not _is_number(connection.sql(f"SELECT ({_measured(rule)}\n) FROM data")):
                raise ConfigError("ks is for numbers", "values have no order", 'measure = "jensen_shannon"')
    except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException):
        raise
    except duckdb.Error as e:
        raise sql_error(e, hint) from None


def _check_texts(rule: Expectation, columns: Mapping[str, str], connection: Any) -> None:
    """Raise ConfigError for a text that the type of the column does not have."""
    texts = [value for value in (*rule.bounds.values(), *rule.values) if isinstance(value, str)]
    (type,) = connection.sql(f"SELECT {identifier(rule.column[0])} FROM data").types
    query = f"SELECT t FROM (SELECT unnest(?::VARCHAR[]) AS t) WHERE TRY_CAST(t AS {type}) IS NULL LIMIT 1"
    if texts and (found := connection.execute(query, [texts]).fetchone()):
        what = f"column {rule.column[0]!r} is {columns[rule.column[0]]}, and {found[0]!r} is not"
        raise ConfigError(what, f"{rule.check} compares values of one type", REFERENCE)


def _check_alone(sql: str, connection: Any, hint: str) -> None:
    """Raise UsageError for a text that is an expression only between the parentheses that aifx writes around it."""
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {sql}\n FROM data"]).fetchall()
    if message := json.loads(text).get("error_message"):
        raise UsageError("the SQL cannot be run", f"Parser Error: {message}", hint)


def _check_lasting(sql: str, connection: Any) -> None:
    """Raise ConfigError for an expression that may judge the same rows otherwise at another time."""
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({sql}\n) FROM data"]).fetchall()

    def changing(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            function, columns = str(node.get("function_name", "")).lower(), node.get("column_names") or []
            if function in CHANGING_FUNCTIONS:
                yield f"calls {function}"
            if function == "age" and len(node.get("arguments") or node.get("children", ())) == 1:
                yield "calls age(time), which is up to today"
            if len(columns) == 1 and str(columns[0]).lower() in CURRENT_TIMES:
                yield f"calls {columns[0]}"
            if node.get("sample"):
                yield "takes a sample"
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from changing(child)

    if found := next(changing(json.loads(text)), None):
        why = "a version is judged once, and the result must last"
        raise ConfigError(f"the SQL {found}", why, 'check = "freshness" judges the age of a data set')


def _literal(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def _condition(rule: Expectation, step: Expect) -> str | None:
    """SQL that is true or null for a row that keeps a rule; None if it does not judge single rows alone."""
    columns = step.parents[0].manifest.columns
    names = [identifier(name) for name in rule.column]
    match rule.check:
        case "not_null":
            return f"{names[0]} IS NOT NULL"
        case "range":
            is_float = columns[rule.column[0]] in ("float", "double")
            no_nan = [f"NOT isnan({names[0]})"] if is_float else []
            return " AND ".join([*_bounded(names[0], rule), *no_nan])
        case "length":
            measure = "octet_length" if has_type(columns[rule.column[0]], "binary") else "length"
            return " AND ".join(_bounded(f"{measure}({names[0]})", rule))
        case "matches":
            return f"regexp_matches({names[0]}, {quoted(rule.pattern)})"
        case "values":
            return f"{names[0]} IN ({', '.join(map(_literal, rule.values))})"
        case "references":
            others = [identifier(name) for name in rule.to_column or rule.column]
            keys, empty = ", ".join(names), " OR ".join(f"{name} IS NULL" for name in names)
            filled = " AND ".join(f"{name} IS NOT NULL" for name in others)
            rows = f"SELECT {', '.join(others)} FROM {identifier(_table(rule.to))} WHERE {filled}"
            return f"{empty} OR ({keys}) IN ({rows})"
        case "no_later_than":
            both = (rule.column[0], rule.other)
            empty = " OR ".join(f"{_filled(name, columns[name])} IS NULL" for name in both)
            one, other = (_time(name, columns[name]) for name in both)
            return f"{empty} OR coalesce({one} <= {other}, false)"
        case "sql":
            return f"({rule.sql}\n)"
        case _:
            return None


_SIGNS = {"at_least": ">=", "at_most": "<=", "above": ">", "below": "<"}


def _bounded(sql: str, rule: Expectation) -> list[str]:
    return [f"{sql} {_SIGNS[name]} {_literal(bound)}" for name, bound in rule.bounds.items()]


def _time(name: str, type: str) -> str:
    """SQL for a column as a time, in UTC unless it says otherwise; null for a text that is none. Numbers stay."""
    if has_type(type, "number"):
        return identifier(name)
    return f"TRY_CAST({_filled(name, type)} AS TIMESTAMPTZ)"


def _filled(name: str, type: str) -> str:
    """SQL for a column; null for a blank text, as an empty cell of CSV is."""
    return f"nullif(trim({identifier(name)}), '')" if has_type(type, "text") else identifier(name)


def _aggregate(rule: Expectation) -> str:
    return f"CAST(({rule.sql}\n) AS DOUBLE)"


def _measured(rule: Expectation) -> str:
    return rule.sql or identifier(rule.column[0])


def _is_number(relation: Any) -> bool:
    """Whether the only column of a relation holds numbers."""
    return str(relation.types[0]).startswith(_NUMBERS)


def _judge(step: Expect, work: Path, limits: Limits) -> list[dict[str, Any]]:
    """The result of each rule. Writes the decisions about the rows."""
    import duckdb

    with _connected(step, limits.spare_bytes) as connection:
        judge = _Judge(step, connection)
        try:
            facts = judge.facts()
        except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException):
            raise
        except duckdb.Error as e:
            raise judge.fault_of(e) from None
        decisions = connection.sql(f"SELECT {NUMBER} AS row, rule, twin FROM dropped ORDER BY 1")
        write_decisions(work, _DECISIONS.empty_table())
        for part, batch in enumerate(decisions.to_arrow_reader(DECISION_ROWS), 1):
            write_decisions(work, pa.Table.from_batches([batch]).cast(_DECISIONS), part)
    return facts


@dataclass(frozen=True)
class _Judge:
    """Judges rules over the views of a connection."""

    step: Expect
    connection: Any

    def facts(self) -> list[dict[str, Any]]:
        """The facts that `contracts.outcomes_of` reads, of each rule."""
        self._judge_rows()
        found: dict[int, dict[str, Any]] = {}
        for number, rule in self._judged:
            if rule.check == "unique":
                self._judge_unique(number, rule)
            if rule.judges_rows:
                found[number] = self._broken(number)
        self.connection.execute(f"CREATE VIEW left_rows AS SELECT * FROM numbered ANTI JOIN dropped USING ({NUMBER})")
        found |= self._whole() | {number: {"note": note} for number, note in self.step.unjudged.items()}
        return [found[number] for number in range(len(self.step.rules))]

    @property
    def _judged(self) -> list[tuple[int, Expectation]]:
        return [(n, rule) for n, rule in enumerate(self.step.rules) if n not in self.step.unjudged]

    @cached_property
    def _conditions(self) -> dict[int, str]:
        conditions = ((n, _condition(rule, self.step)) for n, rule in self._judged)
        return {n: sql for n, sql in conditions if sql is not None}

    def _judge_rows(self) -> None:
        """Fill the tables `broken`, by rule, and `dropped`."""
        execute = self.connection.execute
        execute(f"CREATE TABLE broken ({NUMBER} BIGINT, {ROW} VARCHAR, rules INTEGER[])")
        execute(f"CREATE TABLE dropped ({NUMBER} BIGINT, rule VARCHAR, twin VARCHAR)")
        if not self._conditions:
            return
        flags = ", ".join(f"CASE WHEN NOT ({sql}\n) THEN {n} END" for n, sql in self._conditions.items())
        execute(
            f"""INSERT INTO broken SELECT * FROM (
                SELECT {NUMBER}, {ROW}, list_filter([{flags}], lambda n: n IS NOT NULL) AS rules FROM numbered
            ) WHERE len(rules) > 0"""
        )
        if dropping := [n for n in self._conditions if self.step.rules[n].drops_rows]:
            cases = " ".join(f"WHEN list_contains(rules, {n}) THEN {self._id(n)}" for n in dropping)
            execute(
                f"""INSERT INTO dropped SELECT {NUMBER}, CASE {cases} END AS rule, NULL FROM broken
                WHERE rule IS NOT NULL"""
            )

    def _id(self, number: int) -> str:
        return quoted(self.step.rules[number].name)

    def _judge_unique(self, number: int, rule: Expectation) -> None:
        """Find the rows with the key of an earlier one, of those that no rule has dropped."""
        keys = ", ".join(map(identifier, rule.column))
        filled = " AND ".join(f"{identifier(name)} IS NOT NULL" for name in rule.column)
        copies = f"copies_{number}"
        rows = f"numbered ANTI JOIN dropped USING ({NUMBER})"
        self.connection.execute(
            f"""CREATE TABLE {copies} AS WITH repeated AS (
                SELECT {keys}, min({NUMBER}) AS {FIRST}, arg_min({ROW}, {NUMBER}) AS {TWIN} FROM {rows}
                WHERE {filled} GROUP BY {keys} HAVING count(*) > 1
            ) SELECT {NUMBER}, {ROW}, {TWIN} FROM {rows} JOIN repeated USING ({keys}) WHERE {NUMBER} > {FIRST}"""
        )
        self.connection.execute(f"INSERT INTO broken SELECT {NUMBER}, {ROW}, [{number}] FROM {copies}")
        if rule.drops_rows:
            self.connection.execute(f"INSERT INTO dropped SELECT {NUMBER}, {self._id(number)}, {TWIN} FROM {copies}")

    def _broken(self, number: int) -> dict[str, Any]:
        of_rule = f"FROM broken WHERE list_contains(rules, {number})"
        ((count,),) = self.connection.execute(f"SELECT count(*) {of_rule}").fetchall()
        ids = self.connection.execute(f"SELECT {ROW} {of_rule} ORDER BY {NUMBER} LIMIT {MOST_IDS}").fetchall()
        return {
            "rows": self.step.parents[0].manifest.rows,
            "broken": count,
            **({"ids": [row for (row,) in ids]} if ids else {}),
        }

    def _whole(self) -> dict[int, dict[str, Any]]:
        """The facts of the rules about the whole version."""
        columns = self.step.parents[0].manifest.columns
        found: dict[int, dict[str, Any]] = {}
        measured: dict[int, str] = {}
        for number, rule in self._judged:
            match rule.check:
                case "type":
                    found[number] = {"value": columns[rule.column[0]]}
                case "rows":
                    measured[number] = "count(*)"
                case "aggregate":
                    measured[number] = _aggregate(rule)
                case "freshness":
                    measured[number] = _newest(rule.column[0], columns[rule.column[0]])
                case "distribution":
                    found[number] = self._distribution(rule)
                case _:
                    pass
        if measured:
            sql = ", ".join(measured.values())
            ((_, *values),) = self.connection.execute(f"SELECT count(*), {sql} FROM left_rows").fetchall()
            for number, value in zip(measured, values, strict=True):
                is_finite = not isinstance(value, float) or np.isfinite(value)
                found[number] = {"value": value if is_finite else None}
        return found

    def _distribution(self, rule: Expectation) -> dict[str, Any]:
        sql = _measured(rule)
        is_number = _is_number(self.connection.sql(f"SELECT ({sql}\n) FROM data"))
        other = self.step.others[rule.against].manifest
        both = {identifier(_table(rule.against)): other.rows, "left_rows": self.step.parents[0].manifest.rows}
        sides = [self._numbers(sql, *one) if is_number else self._values(sql, one[0]) for one in both.items()]
        sizes = [len(side) if is_number else sum(side.values()) for side in sides]
        if not is_number and len(sides[0]) > MOST_VALUES:
            return {"value": None, "note": f"more than {MOST_VALUES:,} values"}
        if min(sizes) < LEAST_ROWS:
            return {"value": None, "note": f"fewer than {LEAST_ROWS} rows have a value"}
        if rule.measure == "ks":
            return {"value": ks(*sides)}
        counts: tuple[Any, ...]
        if is_number:
            counts = binned(*sides)
        else:
            names = sorted({*sides[0], *sides[1]})
            counts = tuple(np.array([side.get(name, 0) for name in names]) for side in sides)
        return {"value": (psi if rule.measure == "psi" else jensen_shannon)(*counts)}

    def _numbers(self, sql: str, table: str, rows: int) -> Any:
        """The finite values of the same rows in every version that has them."""
        every = max(1, rows // SAMPLE_ROWS)
        query = f"SELECT CAST(({sql}\n) AS DOUBLE) AS v FROM {table} WHERE hash({ROW}) % {every} = 0"
        values = np.ma.compressed(self.connection.execute(query).fetchnumpy()["v"])
        return values[np.isfinite(values)]

    def _values(self, sql: str, table: str) -> dict[str, int]:
        counts = f"SELECT CAST(({sql}\n) AS VARCHAR) AS v, count(*) AS n FROM {table} GROUP BY 1"
        query = f"SELECT v, n FROM ({counts}) WHERE v IS NOT NULL ORDER BY n DESC, v LIMIT {10 * MOST_VALUES}"
        return dict(self.connection.execute(query).fetchall())

    def fault_of(self, error: Exception) -> AifxError:
        """The error of the rule that DuckDB cannot evaluate for some row."""
        import duckdb

        hint = f"aifx data query {self.step.parents[0].reference} 'DESCRIBE data'"
        for number, rule in self._judged:
            if (condition := self._conditions.get(number)) is not None:
                selected = f"count(*) FILTER (NOT ({condition}\n))"
            elif rule.check == "aggregate":
                selected = f"count(*), {_aggregate(rule)}"
            elif rule.check == "distribution":
                selected = f"count(({_measured(rule)}\n))"
            else:
                continue
            try:
                self.connection.execute(f"SELECT {selected} FROM numbered").fetchall()
            except duckdb.Error as e:
                found = sql_error(e, hint, hides_values=True)
                return UsageError(f"rule {rule.name}: {found.what}", found.why, found.hint)
        return sql_error(error, hint, hides_values=True)


def _newest(name: str, type: str) -> str:
    """SQL for the newest time of a column, as text. Numbers are seconds since 1970. Years have four digits."""
    time = f"TRY(to_timestamp({identifier(name)}))" if has_type(type, "number") else _time(name, type)
    newest = f"max({time}) FILTER ({time} BETWEEN '1000-01-01' AND '9999-12-31 23:59:59.999999')"
    return f"strftime({newest} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%f+00:00')"
