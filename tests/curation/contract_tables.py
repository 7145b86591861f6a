"""Tables of tests of contracts, as data sets, and their rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from adding import LIMITS
from pyarrow import parquet

from aifx.core.digests import sha256_of
from aifx.curation.contract_checks import expect
from aifx.curation.contracts import Expectation, RuleOutcome, outcomes_of
from aifx.curation.execution import execute
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.names import ROW, SOURCE, Kind
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Source, Version

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def catalog_of(folder: Path) -> Catalog:
    return open_catalog(str(folder / "datasets"))


@dataclass(frozen=True)
class Tables(Step):
    """Makes a version of a table, in shards of nearly the same size."""

    table: pa.Table
    files: int

    name = "tables"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"rows": sha256_of(str(self.table.to_pylist())), "files": self.files}

    @property
    def kind(self) -> Kind:
        return "table"

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(f"part {number}", 1) for number in range(self.files)]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        size = -(-len(self.table) // self.files)
        rows = self.table.slice(task * size, size)
        ids = [f"p{task}-{number}" for number in range(len(rows))]
        source = Source(f"p{task}", "0" * 64, 1, len(rows), "MIT")
        given = pa.table({ROW: pa.array(ids, pa.string()), SOURCE: pa.array([source.name] * len(ids), pa.string())})
        for name in rows.column_names:
            given = given.append_column(name, rows[name])
        yield Outcome(given, sources=[source])


def add_table(folder: Path, name: str, columns: Mapping[str, Any], files: int = 1) -> Version:
    """Make a data set of a table, in as many shards."""
    return execute(Tables((), pa.table(dict(columns)), files), name, catalog_of(folder), LIMITS).version


def judge(folder: Path, version: Version, rules: Sequence[Mapping[str, Any]]) -> tuple[Version, list[RuleOutcome]]:
    """The version without bad rows, and the outcome of each rule."""
    catalog = catalog_of(folder)
    step = expect(version, [Expectation.model_validate(rule) for rule in rules], catalog, "rules.toml")
    made = execute(step, version.manifest.name, catalog, LIMITS).version
    return made, outcomes_of(made.manifest, NOW)


def row_ids(version: Version) -> list[str]:
    return [row for path in version.shards for row in parquet.read_table(path, columns=["_row"])["_row"].to_pylist()]


def dropped_by(version: Version) -> dict[str, tuple[str, str | None]]:
    """The rule and the twin of each dropped row."""
    rows = [row for path in version.dropped for row in parquet.read_table(path).to_pylist()]
    return {row["_row"]: (row["rule"], row["twin"]) for row in rows}
