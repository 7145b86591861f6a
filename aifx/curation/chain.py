"""Steps of a recipe that make one version together: the rows pass through all of them, and are written once.

A step that judges each row alone passes its rows on in memory. A step that decides with all rows in view needs those
that the steps before it leave. They go to files of the work folder, which cost little: nothing is sorted, compressed
or profiled. So the steps are cut into stages, and a stage begins with a step that looks at all rows:

    clean                    shards of the parent -> stage-0
    dedupe, pii              stage-0 -> stage-1, after the decisions of dedupe about stage-0
    split                    stage-1 -> shards of the version, after the decisions of split about stage-1

Each step does what it does alone, with the same rows in the same order.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.core.parsing import parse_json
from aifx.curation.continuing import LastingStep
from aifx.curation.execution import OUT, Runner, run_stage
from aifx.curation.planned import PlannedVersion
from aifx.curation.step import DecidedStep, Limits, Outcome, ShardStep, Step, digest_of
from aifx.data.names import CLUSTER, ROW
from aifx.data.readers.arrow import pa, pc
from aifx.data.versions.made_steps import DROPPED_BY, MAKE, ROWS, fact_of, made_steps
from aifx.data.versions.manifest import CONTINUES, Manifest, ShardFile, Source, StepRecord
from aifx.data.versions.shards import dropped_rows, read_parts, read_shard

STAGE = "stage-"


def can_link(step: Step) -> bool:
    """Whether a step can be one of several that make a version together."""
    return type(step).run in (ShardStep.run, DecidedStep.run)


def _looks_at_all(link: Step) -> bool:
    """Whether a step prepares something from all rows."""
    return isinstance(link, DecidedStep) or type(link).prepare is not Step.prepare


@dataclass(frozen=True)
class Spool:
    """The files with the rows that a stage leaves.

    Attributes:
        bounds: [tasks + 1] the number of the first shard of each task.
        dropped: of each task.
    """

    shards: tuple[ShardFile, ...]
    bounds: tuple[int, ...]
    dropped: tuple[tuple[ShardFile, ...], ...]


_SPOOL = TypeAdapter(Spool)


@dataclass(frozen=True)
class LinkedSteps(Step):
    """Steps of which each reads the rows that the one before it leaves.

    Attributes:
        links: the steps. The parent of the first is that of them all.
    """

    links: tuple[Step, ...]

    name = MAKE

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"steps": [plain(link.record) for link in self.links]}

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([type(self).__module__, *(m for link in self.links for m in link.modules)]))

    @property
    def worker_bytes(self) -> int:
        return min(link.worker_bytes for link in self.links)


@dataclass(frozen=True)
class Stage(LinkedSteps):
    """Steps that need one reading of the rows: the first of them may look at all rows before.

    Attributes:
        number: of the first link in the chain.
        bounds: the number of the first shard of the parent for each task, and of all shards.
        extra: columns of dropped rows that a step of the chain adds, with their types.
    """

    number: int
    bounds: tuple[int, ...]
    extra: Mapping[str, str]

    has_profile = False

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        found = self.links[0].prepare(work, limits)
        return {fact_of(self.number, name): fact for name, fact in found.items()}

    def tasks(self) -> Sequence[tuple[str, int]]:
        shards = self.parents[0].manifest.shards
        parts = [shards[begin:end] for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]
        return [(part[0].name if part else "no rows", sum(shard.bytes for shard in part)) for part in parts]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        for shard in range(self.bounds[task], self.bounds[task + 1]):
            first = self.links[0]
            if isinstance(first, DecidedStep):
                for rows, decisions in first.decided_rows(shard, work):
                    yield self._pass(rows, first.apply(rows, decisions), work)
            else:
                for rows in read_parts(self.parents[0].shards[shard]):
                    yield self._pass(rows, _apply(first, rows, work), work)

    def _pass(self, rows: Any, outcome: Outcome, work: Path) -> Outcome:
        """Pass the rows that the first link leaves through the others."""
        facts: Counter[str] = Counter()
        left_out = [self._marked(dropped_rows([], []), 0)]
        for number, link in enumerate(self.links, self.number):
            if number > self.number:
                outcome = _apply(link, rows, work)
            assert outcome.kept is not None, f"{link.name} gives no rows"
            assert outcome.quarantine is None, f"{link.name} reads no sources"
            facts.update({fact_of(number, name): count for name, count in outcome.facts.items()})
            facts[fact_of(number, ROWS)] += len(outcome.kept)
            if outcome.dropped is not None and len(outcome.dropped):
                left_out.append(self._marked(outcome.dropped, number))
                rules = outcome.dropped["rule"].to_pylist()
                facts.update(fact_of(number, f"{DROPPED_BY}{rule}") for rule in rules)
            if link.fills_columns:
                rows = _with_columns(rows, link.added_columns)
            if len(changed := changed_rows(rows, outcome.kept)):
                left_out.append(self._marked(dropped_rows(changed, pa.nulls(len(changed), pa.string())), number))
            rows = outcome.kept
        return Outcome(rows, pa.concat_tables(left_out), facts)

    def _marked(self, dropped: Any, number: int) -> Any:
        """Dropped or changed rows with the number of the step, and with all columns that a step adds."""
        rows = _with_columns(dropped, self.extra).select([ROW, "rule", "twin", *self.extra])
        return rows.append_column("step", pa.array(np.full(len(rows), number), pa.int16()))


def _apply(link: Step, rows: Any, work: Path) -> Outcome:
    assert isinstance(link, ShardStep), f"{link.name} begins a stage"
    return link.apply(rows, work)


def _with_columns(rows: Any, columns: Mapping[str, str]) -> Any:
    """Rows with the columns that they lack, which hold nothing."""
    for name, kind in columns.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), pa.type_for_alias(kind)))
    return rows


def changed_rows(before: Any, after: Any) -> Any:
    """The `_row` of those rows that have another value in a column of `before`, except `_cluster`.

    Args:
        after: some of the rows of `before`, in the same order.
    """
    if len(after) != len(before):
        before = before.filter(pc.is_in(before[ROW], after[ROW].combine_chunks()))
    differ = np.zeros(len(after), bool)
    for name in before.column_names:
        if name in (ROW, CLUSTER):
            continue
        if name not in after.column_names:
            differ[:] = True
            continue
        old, new = before[name], after[name]
        if old is new or (old.type == new.type and old.equals(new)):
            continue
        differ |= _differs(old, new)
    return after[ROW].filter(pa.array(differ))


def _differs(old: Any, new: Any) -> Any:
    try:
        same = pc.fill_null(pc.equal(old, new.cast(old.type)), False)
        same = pc.or_(same, pc.and_(old.is_null(), new.is_null()))
        return ~same.combine_chunks().to_numpy(zero_copy_only=False)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # of lists, or of types that are not alike
        pairs = zip(old.to_pylist(), new.to_pylist(), strict=True)
        return np.array([one != other for one, other in pairs], bool)


class LimitBroken(Exception):
    """A step broke a limit, so those after it do not run. `number` is its place in the chain."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class ChainStep(LinkedSteps):
    """Makes a version by several steps, of which each but the last gets none.

    Each link has the rows that those before it leave as its first parent (`planned_version`). The second parent of the
    chain, if there is one, is a version of earlier rows: its decisions of `dedupe` and `split` about these rows stay
    (`continuing`).

    Attributes:
        limits: for each link, whether what it made is accepted. They are no part of the result.
        runner: of the tasks of stages.
    """

    limits: tuple[Callable[[Manifest], bool], ...] = field(compare=False, repr=False)
    runner: Runner | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what only `prepare` uses: functions of a verb, and the runner that takes the tasks."""
        return {**self.__dict__, "limits": (), "runner": None}

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.parents[0].manifest.sources

    def continues(self, record: StepRecord) -> int:
        return len(self._continued(record))

    def _continued(self, record: StepRecord) -> dict[int, int | None]:
        """The links that go on with the decisions of a step with this record, by number: the number of each of these.

        It is None if that step made a version alone. Links that make no such decisions may differ.
        """
        is_chain = record.name == self.name
        theirs = dict(enumerate(StepRecord(**one) for one in record.settings["steps"]) if is_chain else [(0, record)])
        found: dict[int, int | None] = {}
        for number, link in enumerate(self.links):
            if link.continues(link.record) and (alike := [n for n, one in theirs.items() if link.continues(one)]):
                del theirs[alike[0]]
                found[number] = alike[0] if is_chain else None
        return found

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        """Do all stages but the last, each in a folder beside `work`, and prepare the last.

        A call after a kill goes on with the tasks that are missing. Raises LimitBroken.
        """
        facts: dict[str, Any] = {}
        *earlier, last = range(len(self._cuts()))
        for number in earlier:
            folder = work.parent / f"{STAGE}{number}"
            if not (done := folder / "spool.json").exists():
                folder.mkdir(exist_ok=True)
                found, results = run_stage(self._stage(number, work.parent), folder, limits, self.runner)
                shards = tuple(shard for result in results for shard in result.shards)
                bounds = (0, *accumulate(len(result.shards) for result in results))
                spool = Spool(shards, bounds, tuple(result.dropped for result in results))
                sums = Counter[str]()
                for result in results:
                    sums.update(result.facts)
                write_json(folder / "facts.json", plain({**found, **sums}))
                write_json(done, plain(spool))
            if number:
                shutil.rmtree(work.parent / f"{STAGE}{number - 1}" / OUT / "shards", ignore_errors=True)
            kept = parse_json(read_file(folder / "facts.json"))
            assert isinstance(kept, dict)
            facts |= kept
            if (broken := self._broken(facts, self._cuts()[number + 1])) is not None:
                raise LimitBroken(broken)
        facts |= self._stage(last, work.parent).prepare(work, limits)
        if self.parents[1:]:
            facts[CONTINUES] = self.parents[1].manifest.whole_reference
        return facts

    def task_inputs(self, task: int, work: Path) -> Any:
        """The inputs of `run`: rows that earlier stages left and left out, decisions about them, and settings."""
        last = len(self._cuts()) - 1
        spools = [_read_spool(work.parent / f"{STAGE}{number}" / "spool.json") for number in range(last)]
        left_out = [[file.sha256 for file in spool.dropped[task]] for spool in spools]
        stage = self._stage(last, work.parent)
        numbers, first = range(stage.bounds[task], stage.bounds[task + 1]), stage.links[0]
        shards = [stage.parents[0].manifest.shards[number].sha256 for number in numbers]
        decided = first if isinstance(first, DecidedStep) else None
        decisions = [digest_of(decided.decisions(number, work)) for number in numbers] if decided else []
        links = [(link.name, link.task_settings) for link in stage.links]
        return [self.kind, stage.number, links, shards, decisions, left_out]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        last = len(self._cuts()) - 1
        for number in range(last):
            folder = work.parent / f"{STAGE}{number}"
            for shard in _read_spool(folder / "spool.json").dropped[task]:
                yield Outcome(None, read_shard(folder / OUT / shard.name))
        yield from self._stage(last, work.parent).run(task, work, limits)

    def accepts(self, manifest: Manifest) -> bool:
        """Whether no step broke its limit."""
        return self._broken(manifest.facts, len(self.links)) is None

    def _broken(self, facts: Mapping[str, Any], count: int) -> int | None:
        """The first of `count` links that broke its limit."""
        record = StepRecord(self.name, self.settings)
        made = made_steps(replace(self.parents[0].manifest, step=record, facts=facts))[:count]
        return next((n for n, (limit, one) in enumerate(zip(self.limits, made, strict=False)) if not limit(one)), None)

    def _cuts(self) -> list[int]:
        """The number of the first link of each stage."""
        return [0, *(number for number, link in enumerate(self.links) if number and _looks_at_all(link))]

    def _stage(self, number: int, folder: Path) -> Stage:
        """A stage, whose stages before it are done in a folder."""
        cuts = [*self._cuts(), len(self.links)]
        links = self.links[cuts[number] : cuts[number + 1]]
        parent = self.parents[0]
        bounds = tuple(range(len(parent.manifest.shards) + 1))
        if number:
            before = folder / f"{STAGE}{number - 1}"
            spool = _read_spool(before / "spool.json")
            bounds = spool.bounds
            manifest: Manifest = replace(
                links[0].parents[0].manifest,
                shards=spool.shards,
                rows=sum(shard.rows for shard in spool.shards),
                bytes=sum(shard.bytes for shard in spool.shards),
            )
            parent = PlannedVersion(before / OUT, manifest)
            links = (links[0].on(parent), *links[1:])
        first, own = links[0], cuts[number]
        continued = self._continued(self.parents[1].manifest.made_by) if self.parents[1:] else {}
        if own in continued and isinstance(first, LastingStep):
            links = (replace(first, parents=(parent, *self.parents[1:]), link=continued[own]), *links[1:])
        extra = {name: kind for link in self.links for name, kind in link.dropped_columns.items()}
        return Stage((parent,), links, cuts[number], bounds, extra)


@lru_cache(maxsize=8)
def _read_spool(path: Path) -> Spool:
    spool: Spool = _SPOOL.validate_python(parse_json(read_file(path)))
    return spool
