"""The step that drops rows by their ids."""

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

    def apply(self, rows: Table, work: Path) -> Outcome:
        places = np.flatnonzero(pc.is_in(rows[ROW], value_set=self._ids))
        return without(rows, places, [RULE] * len(places))
