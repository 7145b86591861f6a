"""Versions of data sets, made without `aifx data add`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from aifx.core.project import Project
from aifx.curation.execution import execute
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.names import ROW, SOURCE, Kind
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Source, Version

LIMITS = Limits(1 << 30, 1)


@dataclass(frozen=True)
class Given(Step):
    """Collects given rows, the same number for each shard."""

    rows: Mapping[str, Sequence[Any]]
    of_kind: Kind
    num_shards: int = 1

    name = "given"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"shards": self.num_shards}

    @property
    def kind(self) -> Kind:
        return self.of_kind

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(f"shard {index}", 1) for index in range(self.num_shards)]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        table = pa.table(dict(self.rows))
        count = len(table)
        names = {ROW: pa.array([f"r-{index}" for index in range(count)]), SOURCE: pa.array(["s"] * count)}
        table = pa.table({**names, **{name: table[name] for name in table.column_names}})
        first, stop = (count * n // self.num_shards for n in (task, task + 1))
        sources = [Source("s", "0" * 64, 1, count, "MIT")]
        yield Outcome(table.slice(first, stop - first).combine_chunks(), sources=sources if task == 0 else ())


def make_version(
    project: Project, name: str, rows: Mapping[str, Sequence[Any]], kind: Kind = "text", shards: int = 1
) -> Version:
    """A version of the data set `name` in `project`, with these columns beside `_row` and `_source`."""
    catalog = open_catalog(project.datasets, project)
    return execute(Given((), rows, kind, shards), name, catalog, LIMITS).version
