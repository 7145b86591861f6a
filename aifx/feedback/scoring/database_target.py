"""A table of a database as a target: predictions, position and request of a commit are one transaction.

the table           a row per prediction, by `prediction_id`
aifx_positions      a row per target, which a commit locks: the positions by `scoring_of`, and the requests that began
aifx_requests       a row per request that was done, as `aifx data push` keeps them
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import RecordBatch

from aifx.core.errors import UsageError
from aifx.core.files import FolderBusy
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.core.requests import Request, check_act
from aifx.curation.databases.push import REQUESTS, parse_target
from aifx.curation.databases.push import Target as Table
from aifx.data.versions.sql import identifier
from aifx.feedback.scoring.connections import DIALECTS, Connection, connect
from aifx.feedback.scoring.predictions import ID, OWN
from aifx.feedback.scoring.targets import Target

POSITIONS = "aifx_positions"


@dataclass(frozen=True)
class DatabaseTable:
    """A table of a database, which need not be there yet."""

    table: Table

    @classmethod
    def of(cls, url: str) -> DatabaseTable:
        """The table that a URL names. Raises UsageError."""
        table = parse_target(url, DIALECTS)
        if table.table in (POSITIONS, REQUESTS):
            why = "aifx keeps positions and requests there"
            raise UsageError(f"{table.name} takes no predictions", why, "name another table")
        return cls(table)

    @property
    def name(self) -> str:
        return self.table.name

    @contextmanager
    def open(self) -> Iterator[OpenTable]:
        with connect(self.table.url, f"write {self.name}", makes=True) as connection:
            opened = OpenTable(connection, self.table)
            with connection.transaction():
                opened.check_columns(OWN)
            yield opened


class OpenTable(Target):
    """A table that this call reads and writes, as others do: each commit waits for its turn."""

    def __init__(self, connection: Connection, table: Table) -> None:
        self._database, self._table = connection, table
        self._is_there = False

    def outcome(self, request: Request) -> Mapping[str, Any] | None:
        with self._database.transaction():
            return self._outcome(request)

    def begun(self, request: Request) -> Mapping[str, Any] | None:
        with self._database.transaction():
            begun: dict[str, Any] | None = self._entry()["begun"].get(request.id)
        if begun is not None:
            check_act(request.id, begun["act"] == request.act, f"it is of {begun['act']}")
        return begun

    def position(self, scoring: str) -> Any:
        with self._database.transaction():
            return self._entry()["positions"].get(scoring)

    def scorings(self) -> list[str]:
        """What positions are of, by `scoring_of`."""
        with self._database.transaction():
            return list(self._entry()["positions"])

    def known(self, ids: Collection[str]) -> set[str]:
        with self._database.transaction():
            return self._known(ids)

    def add(self, batch: RecordBatch, scoring: str, position: Any, request: Request | None, model: str) -> int:
        with self._database.transaction():
            self._make(batch.schema)
            entry = self._turn()
            there = self._known(batch.column(ID).to_pylist())
            fresh = batch.filter(pa.array([id not in there for id in batch.column(ID).to_pylist()]))
            if len(fresh):
                self._database.insert(self._table, fresh)
            if position is not None:
                entry["positions"][scoring] = position
            if request is not None:
                before = entry["begun"].get(request.id, {"act": request.act, "model": model, "scored": 0})
                entry["begun"][request.id] = before | {"scored": before["scored"] + len(fresh)}
            self._keep(entry)
        return len(fresh)

    def finish(self, scoring: str, position: Any, request: Request | None, outcome: Mapping[str, Any]) -> None:
        with self._database.transaction():
            self._make(None)
            entry = self._turn()
            if request is not None:
                if self._outcome(request) is not None:
                    what = f"--request {request.id} was done meanwhile"
                    raise FolderBusy(what, "by another call", "run the same command again")
                values = request.id, request.act, encode_json({"outcome": outcome}, ensure_ascii=False)
                self._database.rows(f"INSERT INTO {self._table.quoted(REQUESTS)} VALUES ($1, $2, $3)", *values)
                entry["begun"].pop(request.id, None)
            if position is not None:
                entry["positions"][scoring] = position
            self._keep(entry)

    def check_columns(self, schema: pa.Schema) -> None:
        """Raise UsageError if the table is there, and a column is not, or is of another type."""
        there = self._database.columns(self._table, self._table.table)
        wanted = {one.name: self._database.types[one.type] for one in schema}
        wrong = {name: kind for name, kind in wanted.items() if there.get(name) != kind}
        if there and wrong:
            found = "; ".join(
                f"{name!r} is {there.get(name, 'missing')}, and predictions have {kind}" for name, kind in wrong.items()
            )
            what = f"the table {self._table.name} does not take the predictions"
            raise UsageError(what, found, "name another table: aifx makes one that is not there")

    def _make(self, schema: pa.Schema | None) -> None:
        """Make the tables that are not there, within a transaction. Raises UsageError for one with other columns."""
        if self._is_there:
            return
        wanted = {
            POSITIONS: "target text PRIMARY KEY, entry text NOT NULL",
            REQUESTS: "request text PRIMARY KEY, act text NOT NULL, entry text NOT NULL",
        }
        if schema is not None:
            own = ", ".join(f"{identifier(one.name)} {self._database.types[one.type]}" for one in schema)
            wanted[self._table.table] = f"{own}, PRIMARY KEY ({ID})"
        for name, columns in wanted.items():
            if not self._database.columns(self._table, name):
                if self._database.alone:
                    self._database.rows(self._database.alone)
                self._database.rows(f"CREATE TABLE IF NOT EXISTS {self._table.quoted(name)} ({columns})")
        if schema is not None:
            self.check_columns(schema)
            self._is_there = True

    def _outcome(self, request: Request) -> dict[str, Any] | None:
        table = self._table.quoted(REQUESTS)
        if not self._database.columns(self._table, REQUESTS):
            return None
        found = self._database.rows(f"SELECT act, entry FROM {table} WHERE request = $1", request.id)
        if not found:
            return None
        act, entry = found[0]
        check_act(request.id, act == request.act, f"it is of {act}")
        outcome: dict[str, Any] = parse_json(entry)["outcome"]
        return outcome

    def _entry(self, lock: str = "") -> dict[str, Any]:
        """What the position row says."""
        if not self._database.columns(self._table, POSITIONS):
            return {"positions": {}, "begun": {}}
        table = self._table.quoted(POSITIONS)
        found = self._database.rows(f"SELECT entry FROM {table} WHERE target = $1 {lock}", self._table.table)
        entry: dict[str, Any] = json.loads(found[0][0]) if found else {"positions": {}, "begun": {}}
        return entry

    def _turn(self) -> dict[str, Any]:
        """Wait for other commits into the table, and let others wait until this one has ended."""
        table = self._table.quoted(POSITIONS)
        empty = encode_json({"positions": {}, "begun": {}})
        self._database.rows(f"INSERT INTO {table} VALUES ($1, $2) ON CONFLICT DO NOTHING", self._table.table, empty)
        return self._entry(self._database.lock)

    def _keep(self, entry: Mapping[str, Any]) -> None:
        table = self._table.quoted(POSITIONS)
        text = encode_json(entry, ensure_ascii=False)
        self._database.rows(f"UPDATE {table} SET entry = $2 WHERE target = $1", self._table.table, text)

    def _known(self, ids: Collection[str]) -> set[str]:
        if not self._database.columns(self._table, self._table.table):
            return set()
        sql = f"SELECT {ID} FROM {self._table.quoted()} WHERE {ID} IN ({self._database.values})"
        return {row[0] for row in self._database.rows(sql, encode_json(list(ids)))}
