"""The step that writes the rows of a version again, in whole shards of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aifx.core.json_values import plain
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.versions.manifest import COMPACT, QUARANTINE, ShardFile, Version
from aifx.data.versions.shards import SHARD_BYTES, read_parts


@dataclass(frozen=True)
class Compact(Step):
    """Writes the rows and the quarantine of a version into whole shards of its own, in order."""

    name = COMPACT

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"of": plain(self.parents[0].manifest.made_by)}

    @cached_property
    def _groups(self) -> list[list[ShardFile]]:
        """The files that a task reads: those of neighbouring shards that fill one together."""
        manifest = self.parents[0].manifest
        return [*_filling(manifest.shards), *_filling(manifest.quarantine)]

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(group[0].name, sum(file.bytes for file in group)) for group in self._groups]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        for file in self._groups[task]:
            for rows in read_parts(self.parents[0].path_of(file)):
                yield Outcome(None, quarantine=rows) if file.name.startswith(QUARANTINE) else Outcome(rows)


def is_compact(version: Version) -> bool:
    """Whether a version holds all of its rows, in as few shards as `Compact` would write."""
    manifest = version.manifest
    groups = (*_filling(manifest.shards), *_filling(manifest.quarantine))
    return not manifest.holders and all(len(group) == 1 for group in groups)


def _filling(files: Sequence[ShardFile]) -> list[list[ShardFile]]:
    groups: list[list[ShardFile]] = []
    size = 0
    for file in files:
        if not groups or size + file.bytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.bytes
    return groups
