"""The interface of a step of curation: a pure function that makes the shards of a version, a task at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.json_values import plain
from aifx.curation.words import I64
from aifx.data.names import ROW, Kind
from aifx.data.readers.arrow import pa, pc, pq
from aifx.data.versions.manifest import ShardFile, Source, StepRecord, Version
from aifx.data.versions.shards import dropped_rows, read_parts

if TYPE_CHECKING:
    from pyarrow import Table

PROCESS_BYTES = 160 << 20
"""Memory of a process that runs tasks: the interpreter with its packages, and a few parts of rows."""


@dataclass(frozen=True)
class Limits:
    """The resources that a step may use.

    Attributes:
        memory_bytes: of all of its processes together; a step writes to the disk what exceeds it.
        workers: processes that run tasks.
    """

    memory_bytes: int
    workers: int

    def for_work(self, work_bytes: int, worker_bytes: int) -> Limits:
        """The same with so many processes that each has `worker_bytes` of the work, or all of it."""
        return replace(self, workers=max(1, min(self.workers, work_bytes // worker_bytes)))

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
    has_profile: ClassVar[bool] = True
    """Whether its rows are those of a version, which has a profile."""
    fills_columns: ClassVar[bool] = False
    """Whether it changes a row that gets a value in a column that it adds, such as a label."""
    dropped_columns: ClassVar[Mapping[str, str]] = {}
    """Columns of the rows that it leaves out, beside `_row`, `rule` and `twin`, with their Arrow types."""

    @property
    def added_columns(self) -> Mapping[str, str]:
        """The columns that it adds or gives other values, with their Arrow types."""
        return {}

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules with its code."""
        return (type(self).__module__,)

    def on(self, version: Version) -> Self:
        """The same step with the rows of its first parent in another place."""
        return replace(self, parents=(version, *self.parents[1:]))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The user's choices in types of JSON, and a digest of the files that the step reads; by default its fields.

        The manifest records it. A step with the settings, the parents and the code of a version is not run again.
        """
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "parents"}

    @property
    def record(self) -> StepRecord:
        """The step as the manifest records it."""
        return StepRecord(self.name, plain(self.settings))

    def continues(self, record: StepRecord) -> int:
        """Number of steps in it whose decisions about earlier rows are those of a step with this record."""
        return 0

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

    def tasks(self) -> Sequence[tuple[str, int]]:
        """The parts of the work, in order: for each, the name of its input, for messages, and the input's bytes.

        By default the shards of the first parent.
        """
        return [(shard.name, shard.bytes) for shard in self.parents[0].manifest.shards]

    @property
    def worker_bytes(self) -> int:
        """Bytes of input that are worth a process of their own, which takes about a second to start."""
        return 32 << 20

    @property
    def task_settings(self) -> Mapping[str, Any]:
        """The settings that the outcome of a task depends on, beside what `prepare` wrote; by default all."""
        return self.settings

    def task_inputs(self, task: int, work: Path) -> Any:
        """All that the outcome of a task depends on, except the code, in types of JSON. None if nothing says.

        A task with the same inputs is not run again: the version refers to the files that an earlier version of the
        data set has of it. So the settings and the other rows are no part of it, unless the outcome depends on them.

        Args:
            work: the folder that `prepare` has written.
        """
        return None

    def kept_file(self, task: int, work: Path) -> ShardFile | None:
        """The file of the first parent's shards or quarantine that a task would write again without a change, if any.

        The version refers to that file, and the task does not run.
        """
        return None

    @abstractmethod
    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        """The rows that a task makes: the same, divided in the same way, wherever and however often it runs."""


@dataclass(frozen=True)
class ShardStep(Step):
    """A step that judges the rows of its parent a few megabytes at a time: those of a task are of one shard."""

    def task_inputs(self, task: int, work: Path) -> Any:
        return [self.kind, self.parents[0].manifest.shards[task].sha256, self.task_settings]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        for rows in read_parts(self.parents[0].shards[task]):
            yield self.apply(rows, work)

    @abstractmethod
    def apply(self, rows: Table, work: Path) -> Outcome:
        """Sort some rows of a shard into kept and dropped ones."""


ID_DIGITS = 12


def row_prefix(name: str, sha256: str) -> str:
    """The beginning of the `_row` of each row of a file."""
    return sha256_of(f"{name}\0{sha256}")[:ID_DIGITS]


def check_row_ids(sources: Iterable[Source]) -> None:
    """Raise DataError for two sources whose rows would have the same ids: twelve digits may agree."""
    seen: dict[str, str] = {}
    for source in sources:
        other = seen.setdefault(row_prefix(source.name, source.sha256), source.name)
        if other != source.name:
            why = "the digests of their names and contents begin alike, and so would the ids of their rows"
            raise DataError(f"{source.name} cannot be added beside {other}", why, f"rename {source.name}")


DECISIONS = "decisions"
"""The folder of the decisions that `prepare` writes."""


@dataclass(frozen=True)
class DecidedStep(Step):
    """A step that decides about rows with all of them in view, and applies the decisions as a `ShardStep` judges.

    Attributes:
        only_drops: whether a row without a decision is unchanged.
    """

    only_drops: ClassVar[bool] = False

    def task_inputs(self, task: int, work: Path) -> Any:
        shard = self.parents[0].manifest.shards[task]
        return [self.kind, shard.sha256, self.task_settings, digest_of(self.decisions(task, work))]

    def kept_file(self, task: int, work: Path) -> ShardFile | None:
        is_kept = self.only_drops and not len(self.decisions(task, work))
        return self.parents[0].manifest.shards[task] if is_kept else None

    def decisions(self, task: int, work: Path) -> Table:
        """The decisions about the rows of a shard. `row` counts from the first of them."""
        return read_decisions(work, int(self.first_rows[task]), self.parents[0].manifest.shards[task].rows)

    @cached_property
    def first_rows(self) -> I64:
        return first_rows(self.parents[0].manifest.shards)

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        for rows, decisions in self.decided_rows(task, work):
            yield self.apply(rows, decisions)

    def decided_rows(
        self, task: int, work: Path, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Table, Table]]:
        """The rows of a shard, some at a time, with the decisions about them."""
        decisions = self.decisions(task, work)
        for first, rows in numbered_parts(self.parents[0].shards[task], columns):
            yield rows, _decisions_about(decisions, first, len(rows))

    @abstractmethod
    def apply(self, rows: Table, decisions: Table) -> Outcome:
        """Sort some rows into kept and dropped ones. `row` of the decisions counts from the first of them."""


def first_rows(shards: Sequence[ShardFile]) -> I64:
    """[shards + 1] the number of each shard's first row, counted from the first shard, and the number of all rows."""
    return np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)


def by_shard(rows: I64, shards: Sequence[ShardFile]) -> Iterator[tuple[int, I64]]:
    """Each shard that has some of the rows, which are increasing numbers over all shards, and their numbers in it."""
    firsts = first_rows(shards)
    for shard, (begin, end) in enumerate(pairwise(np.searchsorted(rows, firsts).tolist())):
        if begin < end:
            yield shard, rows[begin:end] - firsts[shard]


def numbered_parts(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Table]]:
    """The rows of a shard, some at a time, and the number of the first of them."""
    first = 0
    for rows in read_parts(path, columns):
        yield first, rows
        first += len(rows)


def write_decisions(work: Path, decisions: Table, part: int = 0) -> None:
    """Write decisions, or a part of them, ordered by `row`, the row's number over all shards from 0."""
    (work / DECISIONS).mkdir(exist_ok=True)
    pq.write_table(decisions, work / DECISIONS / f"{part:05d}.parquet", row_group_size=10_000)


def rewrite_decisions(work: Path, change: Callable[[Table], Table]) -> None:
    """Change decisions that were written, a part at a time."""
    for path in sorted((work / DECISIONS).iterdir()):
        write_decisions(work, change(pq.read_table(path, partitioning=None)), int(path.stem))


def read_decisions(work: Path, first: int, rows: int) -> Table:
    """The decisions about `rows` rows from the number `first`; `row` counts from there."""
    is_about = (pc.field("row") >= first) & (pc.field("row") < first + rows)
    found = pq.read_table(work / DECISIONS, filters=is_about, partitioning=None, use_threads=False)
    return _decisions_about(found.sort_by("row"), first, rows)


def _decisions_about(decisions: Table, first: int, rows: int) -> Table:
    """Those about `rows` rows from the number `first`; `row` counts from there."""
    numbers = decisions["row"].to_numpy()
    begin, end = np.searchsorted(numbers, (first, first + rows))
    found = decisions.slice(begin, end - begin)
    return found.set_column(0, "row", pa.array(numbers[begin:end] - first, pa.int64()))


def digest_of(rows: Table) -> str:
    """A digest of the columns and values of some rows.

    Arrow's own stream would have what is behind a null or the end of a slice, which Parquet leaves out.
    """
    sink = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata(None).combine_chunks()
    pq.write_table(rows, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sha256_of(sink.getvalue().to_pybytes())


def without_dropped(rows: Table, decisions: Table, twin: str) -> Outcome:
    """Some rows without those for which the decisions have a `rule`.

    Args:
        twin: the column of the decisions with the twin of a dropped row.
    """
    decisions = decisions.filter(decisions["rule"].is_valid())
    return without(rows, decisions["row"].to_numpy(), decisions["rule"], decisions[twin])


def without(rows: Table, places: Any, rules: Any, twins: Any = None) -> Outcome:
    """Some rows without those at some places, each dropped by its rule."""
    keep = np.ones(len(rows), bool)
    keep[places] = False
    ids = rows[ROW].take(pa.array(places, pa.int64()))
    return Outcome(rows.filter(pa.array(keep)), dropped_rows(ids, rules, twins))


def set_column(rows: Table, name: str, values: Any) -> Table:
    """The rows with a column added or replaced."""
    if name in rows.column_names:
        return rows.set_column(rows.column_names.index(name), name, values)
    return rows.append_column(name, values)
