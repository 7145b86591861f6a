"""The interface of a step of curation: a pure function that makes the shards of a version, a task at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from aifx.data.names import Kind
from aifx.data.versions.manifest import Source, Version
from aifx.data.versions.shards import read_parts

if TYPE_CHECKING:
    from pyarrow import Table


PROCESS_BYTES = 160 << 20
"""Of a process that runs tasks: the interpreter with its packages, and a few parts of rows."""


@dataclass(frozen=True)
class Limits:
    """The resources that a step may use.

    Attributes:
        memory_bytes: of all of its processes together; a step writes to the disk what exceeds it.
        workers: processes that run tasks.
    """

    memory_bytes: int
    workers: int

    @property
    def spare_bytes(self) -> int:
        """For the part of a step that runs in one process, beyond the process itself and a few parts of rows."""
        return max(self.memory_bytes - PROCESS_BYTES, PROCESS_BYTES // 8)


@dataclass(frozen=True)
class Outcome:
    """Some rows of a version, of a few megabytes: the outcomes of a task fill its shards.

    Attributes:
        kept: its rows; all outcomes of a step have one schema. None if it has none.
        dropped: rows that the step left out: `_row`, `rule`, and `twin`, the `_row` of the kept row that a duplicate
            resembles. See `shards.dropped_rows`.
        facts: numbers that are added up over all outcomes for the manifest.
        sources: that were read for it, for a step that collects rows.
        quarantine: what could not be read of them: `source`, `line`, `reason`, `value`.
    """

    kept: Table | None
    dropped: Table | None = None
    facts: Mapping[str, int] = field(default_factory=dict)
    sources: Sequence[Source] = ()
    quarantine: Table | None = None


@dataclass(frozen=True)
class Step(ABC):
    """Makes a version. Its fields are all that its result depends on; a pickle of it goes to other processes.

    Attributes:
        parents: the versions that it reads.
        name: the subcommand of `aifx data`.
    """

    parents: tuple[Version, ...]

    name: ClassVar[str]

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The user's choices in types of JSON, and a digest of the files that the step reads, if any.

        The manifest records it. A step with the settings, the parents and the code of a version is not run again.
        """

    @property
    def kind(self) -> Kind:
        return self.parents[0].manifest.kind

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the version in addition to those of its outcomes. By default those of the parents."""
        return tuple({source.name: source for parent in self.parents for source in parent.manifest.sources}.values())

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        """Decide what depends on all rows, in files below the folder `work` that tasks read. Returns facts.

        It runs once, before the tasks. If it is killed, it runs again in an empty folder.
        """
        return {}

    @abstractmethod
    def tasks(self) -> Sequence[tuple[str, int]]:
        """The parts of the work, in order: for each, the name of its input, for messages, and the input's bytes."""

    @abstractmethod
    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        """The rows that a task makes: the same, divided in the same way, wherever and however often it runs."""


@dataclass(frozen=True)
class ShardStep(Step):
    """A step that judges the rows of its parent a few megabytes at a time: those of a task are of one shard."""

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(shard.name, shard.bytes) for shard in self.parents[0].manifest.shards]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        for rows in read_parts(self.parents[0].shards[task]):
            yield self.apply(rows, work)

    @abstractmethod
    def apply(self, rows: Table, work: Path) -> Outcome:
        """Sort some rows of a shard into kept and dropped ones."""
