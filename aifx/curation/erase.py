"""The step that drops rows by their ids, and writes only the shards that have any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table

from aifx.core.digests import sha256_of
from aifx.curation.step import Outcome, ShardStep, without
from aifx.data.names import ROW
from aifx.data.versions.manifest import ShardFile
from aifx.data.versions.shards import read_shard

RULE = "erased"


@dataclass(frozen=True)
class Erase(ShardStep):
    """Drops rows by their ids."""

    rows: tuple[str, ...]

    name = "erase"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"rows": len(self.rows), "sha256": sha256_of("\n".join(self.rows))}

    @cached_property
    def _ids(self) -> Any:
        return pa.array(self.rows, pa.string())

    def kept_file(self, task: int, work: Path) -> ShardFile | None:
        parent = self.parents[0]
        ids = read_shard(parent.shards[task], [ROW])[ROW]
        is_erased = pc.any(pc.is_in(ids, value_set=self._ids), min_count=0).as_py()
        return None if is_erased else parent.manifest.shards[task]

    def apply(self, rows: Table, work: Path) -> Outcome:
        places = np.flatnonzero(pc.is_in(rows[ROW], value_set=self._ids))
        return without(rows, places, [RULE] * len(places))
