"""Tables of tests of contracts, as data sets, and their rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from adding import LIMITS, add
from pyarrow import parquet

from aifx.curation.contract_checks import expect
from aifx.curation.contracts import Expectation, RuleOutcome, outcomes_of
from aifx.curation.execution import execute
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def catalog_of(folder: Path) -> Catalog:
    return open_catalog(str(folder / "datasets"))


def add_table(folder: Path, name: str, columns: Mapping[str, Any], files: int = 1) -> Version:
    """Make a data set of a table, with a shard for each file."""
    table = pa.table(dict(columns))
    size = -(-len(table) // files)
    paths = [f"{name}{number}.parquet" for number in range(files)]
    for number, path in enumerate(paths):
        parquet.write_table(table.slice(number * size, size), folder / path)
    return add(folder, name, *paths, kind="table").version


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
