"""Running a step: its tasks in processes, each shard by rename, and a restart that does only what is missing.

A step works in a folder that is named by a digest of all that its result depends on, `<root>/<name>/.work-<key>`:

    prepared/          what `Step.prepare` wrote; prepared.json is written after it
    out/               files of the version, and temporary ones of processes that were killed or still write
    done/<task>.json   written when all shards of a task are in out/
    version/           the version's folder, before it has a name

When all tasks are done, the files that the manifest names move from `out` to `version`, which then gets its name. For a
remote root, the folder is in the cache; the version is copied from there. Each process that works in the folder holds
it, together with the others, so that nobody deletes it meanwhile.
"""

# How a step goes on after it was killed, at any moment. Each effect becomes visible by one rename, after all that it
# refers to is on the disk, and the code that makes it first looks whether it is there:
#
#   1. prepared.json says that `prepared` is whole. Without it, the folder is emptied and made again.
#   2. done/<task>.json says that the shards of a task are whole. A task without it runs again, and writes the same
#      bytes under the same names, since `Step.run` is a pure function. So it may even run twice at a time.
#   3. The version's folder gets its name, which is a digest of its content. The same version again changes nothing.
#   4. The run is recorded in the lineage under its key, once, and the folder of the work is deleted.
#   5. `latest` is replaced, together with the request that asked for it.
#
# A task whose outcome is in a version already does not run (`task_results`), and the version refers to those files.
# Which versions are there to refer to is no part of a version's digest, so it may change between two calls.
#
# A call that finds the version there does what is left of 4 and 5. Nothing is left after 5: a request that is asked for
# again only reports what it did.

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from aifx.core.artifact import MANIFEST, publish, short_reference
from aifx.core.calls import call_each
from aifx.core.code_digest import Code, code_digest
from aifx.core.digests import sha256_of_json
from aifx.core.errors import AifxError, DataError, ExitCode
from aifx.core.files import FolderBusy, read_file, remove_temporary
from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.core.os_errors import naming
from aifx.core.parsing import parse_json
from aifx.core.progress import Reporter, report_progress
from aifx.core.requests import Request
from aifx.core.results import Result
from aifx.core.version import __version__
from aifx.curation.continuing import continued
from aifx.curation.profile import MOST_PARTS, PartialProfile, complete_profile, merge_profiles, profile_rows
from aifx.curation.step import Limits, Step, check_row_ids
from aifx.curation.task_results import RESULT, KeptFiles, TaskResult, earlier_results, task_key, tasks_document
from aifx.curation.work_folders import WORK, holding_dataset, holding_work, sketches_of, steps_folder
from aifx.data.versions.catalog import (
    Catalog,
    check_dataset_name,
    check_own_rows,
    check_shards,
    mark_shards,
    rows_and_bytes,
)
from aifx.data.versions.lineage import is_recorded, record_run
from aifx.data.versions.manifest import DROPPED, QUARANTINE, SHARDS, Manifest, Origin, Source, StepRecord, Version
from aifx.data.versions.requests import finish_request
from aifx.data.versions.sealing import seal_version
from aifx.data.versions.shards import ShardWriter, columns_of, return_memory

OUT, DONE, PREPARED, WHOLE = "out", "done", "prepared", "version"


@dataclass(frozen=True)
class Made:
    """The result of a step.

    Attributes:
        version: the version, on this machine.
        is_new: False if it was there already.
        is_accepted: False if `name` alone still means the version before.
    """

    version: Version
    is_new: bool
    is_accepted: bool = True


@dataclass(frozen=True)
class MadeVersion(Result):
    """The document, with --json, of a command that makes a version.

    Attributes:
        reference: "name@version".
        parents: versions that it was made from.
        rows, size_bytes: of a mix, those of its parents.
        dropped: rows that the step left out.
        dropped_by: the same by rule.
        facts: what the step found.
        is_new: False if the same version was there already.
        is_accepted: False if the command exits 1 and the name alone still means the version before.
    """

    reference: str
    parents: tuple[str, ...]
    rows: int
    size_bytes: int
    dropped: int
    dropped_by: Mapping[str, int]
    facts: Mapping[str, Any]
    is_new: bool
    is_accepted: bool

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_accepted else ExitCode.VERDICT


def made_version(made: Made) -> MadeVersion:
    """The document of a command that made a version."""
    manifest = made.version.manifest
    rows, size_bytes = rows_and_bytes(manifest)
    return MadeVersion(
        reference=manifest.reference,
        parents=tuple(map(short_reference, manifest.parents)),
        rows=rows,
        size_bytes=size_bytes,
        dropped=sum(manifest.dropped_by.values()),
        dropped_by=manifest.dropped_by,
        facts=manifest.facts,
        is_new=made.is_new,
        is_accepted=made.is_accepted,
    )


class NotMade(AifxError):
    """The version of a step is not there, and the step must not run.

    Attributes:
        step: its name.
        settings, parents, code: as a manifest has them.
        note: the reason, if the step knows it.
        input_bytes: of the input that it would read.
    """

    def __init__(self, step: Step, note: str = "") -> None:
        super().__init__(f"{step.name} has made no such version", "dry_run runs no step", f"aifx data {step.name}")
        self.step, self.settings, self.note = step.name, plain(step.settings), note
        self.parents = _references(step)
        self.code = code_of(step)
        self.input_bytes = sum(size for _, size in step.tasks())


Runner: TypeAlias = Callable[[Step, list[int], Path, Limits], Iterator[tuple[int, TaskResult]]]
"""Runs the given tasks of a step, which works in a folder, and gives the result of each."""

Asked: TypeAlias = tuple[Request, Callable[[Made], Result]]
"""A request, and the document that it is answered with."""


def execute(
    step: Step,
    name: str,
    catalog: Catalog,
    limits: Limits,
    run_tasks: Runner | None = None,
    accepts: Callable[[Manifest], bool] = lambda _: True,
    *,
    set_name: bool = True,
    dry_run: bool = False,
    meant: str | None = None,
    asked: Asked | None = None,
) -> Made:
    """Make the version of the data set `name` that `step` describes, and let `name` mean it.

    Args:
        run_tasks: by default, processes of this machine run them.
        accepts: if false for the manifest, the version is there, but `name` alone still means the version before.
        set_name: False if `name` alone keeps its meaning in any case.
        dry_run: raise NotMade instead of making the version.
        meant: the version that `name` meant when the step was chosen, "" for none. If it means another one since,
            FolderBusy is raised. None if the step does not depend on it.
        asked: the request for it, which is kept with its outcome, also if the version is not accepted.

    Raises what the step raises, FolderBusy, RequestDone, OSError. What is done stays for the next call with the
    same step.
    """
    check_dataset_name(name)
    return_memory()
    for parent in step.parents:
        check_own_rows(parent.manifest, f"aifx data {step.name}")
    if dry_run:
        if (found := _find_version(step, catalog, catalog.origins(name))) is None:
            raise NotMade(step)
        return Made(found, is_new=False, is_accepted=accepts(found.manifest))
    if run_tasks is None:
        limits = limits.for_work(sum(size for _, size in step.tasks()), step.worker_bytes)
    with holding_dataset(name, catalog, "makes a version of it"):
        origins = catalog.origins(name)
        found = _find_version(step, catalog, origins)
        is_new = found is None
        if set_name:
            check_meaning(catalog, name, meant, found)
        step = continued(step, catalog, origins) if found is None else step
        parents = found.manifest.parents if found is not None and found not in step.parents else _references(step)
        key = _key(step.record, [parent.partition("@")[2] for parent in parents], code_of(step))
        work = steps_folder(name, catalog) / f"{WORK}{key}"
        with naming(work, keeps_names=True):
            if found is None:
                for parent in step.parents:
                    check_shards(parent)
                with holding_work(work):
                    found = _make_version(step, name, catalog, origins, work, limits, run_tasks)
            if found not in step.parents:
                recorded = replace(found.manifest, code=code_of(step), aifx=__version__)  # by this code, too
                read = [parent.manifest for parent in step.parents]
                more = parents[len(read) :]  # that the version continues; it may be deleted
                record_run(catalog, recorded, [*read, *map(catalog.manifest, filter(catalog.holds, more))], key)
            shutil.rmtree(work, ignore_errors=True)
            made = Made(found, is_new, accepts(found.manifest))
            if set_name:
                name_version(catalog, name, made, meant, asked)
    return made


def name_version(catalog: Catalog, name: str, made: Made, meant: str | None, asked: Asked | None = None) -> None:
    """Let a name mean a version that is accepted, and keep the request in the same commit.

    The caller holds the data set.

    Args:
        meant: see `execute`.

    Raises FolderBusy as `check_meaning`, RequestDone if another call did the request meanwhile.
    """
    version = made.version.manifest.version if made.is_accepted else None
    if version is not None:
        check_meaning(catalog, name, meant, made.version)  # a process of another machine may have changed it
    if asked is not None:
        request, outcome = asked
        finish_request(catalog.store.below(name), version, request, plain(outcome(made)))
    elif version is not None:
        catalog.set_latest(name, version)


def check_meaning(catalog: Catalog, name: str, meant: str | None, made: Version | None) -> None:
    """Raise FolderBusy if `name` means another version than it did, so that none of its rows are lost from it.

    Args:
        meant: see `execute`.
        made: the version that it may mean, too: an equal command has just made it.
    """
    now = catalog.latest(name) or ""
    if meant is not None and now not in (meant, made.manifest.version if made is not None else meant):
        what, why = f"{name} has changed since this command began", f"another process made {name}@{now}"
        raise FolderBusy(what, why, "run the same command again: it begins with that version")


def work_folder(step: Step, name: str, catalog: Catalog) -> Path:
    """The folder in which a step works until its version is whole."""
    return steps_folder(name, catalog) / f"{WORK}{step_key(step)}"


def step_key(step: Step) -> str:
    """A digest of all that the result of a step depends on."""
    return _key(step.record, [parent.manifest.sha256 for parent in step.parents], code_of(step))


def _references(step: Step) -> tuple[str, ...]:
    return tuple(parent.manifest.whole_reference for parent in step.parents)


def code_of(step: Step) -> Code:
    """The code of a step, with all that it imports of aifx."""
    codes = [code_digest(module) for module in step.modules]
    if len(codes) == 1:
        return codes[0]
    libraries = {name: version for code in codes for name, version in code.libraries.items()}
    return Code(sha256_of_json([code.sha256 for code in codes]), dict(sorted(libraries.items())))


def _key(step: StepRecord, parents: Sequence[str], code: Code) -> str:
    return sha256_of_json(plain([step, parents, code]))


def _find_version(step: Step, catalog: Catalog, origins: Mapping[str, Origin]) -> Version | None:
    """The version that the same step made before.

    Its parent, if that is what the step made: a step changes nothing in its own result, and a command that is repeated
    after it was killed at its end finds its result under the data set's name.
    """
    record, code = step.record, code_of(step)

    def is_result(origin: Origin) -> bool:
        """Whether the step made it, with the code that it has now. Other code may have made the same rows before."""
        if plain(origin.step) != wanted:
            return False
        if origin.code == code:
            return True
        manifest = catalog.manifest(origin.reference)
        parents = [parent.partition("@")[2] for parent in manifest.parents]
        return is_recorded(catalog, manifest, _key(record, parents, code))

    wanted, parents = plain(record), _references(step)
    if parents and (own := step.parents[0].manifest.origin).row_parents[1:] == parents[1:] and is_result(own):
        return step.parents[0]
    found = (one for one in origins.values() if one.row_parents == parents and is_result(one))
    return next((catalog.open(one.reference) for one in found), None)


def _make_version(
    step: Step,
    name: str,
    catalog: Catalog,
    origins: Mapping[str, Origin],
    work: Path,
    limits: Limits,
    run_tasks: Runner | None,
) -> Version:
    tasks = step.tasks()
    facts = _prepare(step, work, limits)
    with report_progress(f"{step.name} {name}", sum(size for _, size in tasks), "bytes") as progress:
        known, keys = _known_results(step, name, catalog, origins, work)
        results = _run_tasks(step, work, limits, progress, run_tasks, known)
    results = [replace(result, key=keys.get(task, "")) for task, result in enumerate(results)]
    manifest = _manifest(step, name, results, facts)
    whole = work / WHOLE
    (whole / SHARDS).mkdir(parents=True, exist_ok=True)
    _collect_files(manifest, work / OUT, whole)
    made = catalog.version_in(whole, manifest)
    profile = complete_profile(merge_profiles(part for result in results for part in result.profiles), made)
    seal_version(whole, manifest, plain(profile), tasks_document(results))
    is_there = catalog.store.size(f"{name}/{manifest.version}/{MANIFEST}") is not None  # other code made the same rows
    if is_there or catalog.local is None:
        if not is_there:
            catalog.publish(made)
        if catalog.local is None:
            catalog.keep_copy(made)
        return catalog.open(manifest.whole_reference)
    target = catalog.local / name / manifest.version
    shutil.rmtree(target, ignore_errors=True)  # a folder without a manifest is no version
    publish(whole, target)
    made = replace(made, path=target)
    mark_shards(made)
    return made


def _collect_files(manifest: Manifest, out: Path, whole: Path) -> None:
    """Move the files that a version holds into its folder, which a call that was killed may have begun to fill."""
    own = {whole / file.name: out / file.name for file in manifest.files if not file.holder}
    remove_temporary(whole)
    for path in whole.glob("*/*.parquet"):
        if path not in own:  # another version has it since
            path.unlink()
    for path, source in own.items():
        path.parent.mkdir(exist_ok=True)
        try:
            os.replace(source, path)
        except FileNotFoundError:
            if not path.exists():
                raise


def _prepare(step: Step, work: Path, limits: Limits) -> Mapping[str, Any]:
    done = work / f"{PREPARED}.json"
    if done.exists():
        found = parse_json(read_file(done))
        assert isinstance(found, dict)
        return found
    folder = work / PREPARED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sketches = sketches_of(folder)
    for kept in (sketches, *sketches.glob("*/")):  # a call that was killed may have begun a sketch
        remove_temporary(kept)
    facts = step.prepare(folder, limits)
    write_json(done, facts)
    return facts


def _known_results(
    step: Step, name: str, catalog: Catalog, origins: Mapping[str, Origin], work: Path
) -> tuple[dict[int, TaskResult], dict[int, str]]:
    """The results of the tasks that need not run, since a version has their files, and the keys of the others."""
    results: dict[int, TaskResult] = {}
    keys: dict[int, str] = {}
    kept = KeptFiles(step.parents[0], catalog) if step.parents else None
    is_own = bool(step.parents) and step.parents[0].manifest.name == name
    code = code_of(step)
    for task in range(len(step.tasks())):
        file = step.kept_file(task, work / PREPARED) if is_own else None
        if file is not None and kept is not None:
            results[task] = kept.result(file, task)
        else:
            keys[task] = task_key(step, code, step.task_inputs(task, work / PREPARED))
    return results | earlier_results(step, catalog, origins, code, keys), keys


def _run_tasks(
    step: Step,
    work: Path,
    limits: Limits,
    progress: Reporter,
    run_tasks: Runner | None,
    known: Mapping[int, TaskResult],
) -> list[TaskResult]:
    """The results of all tasks, in order. Runs those that are not known and were not done before a kill."""
    tasks = step.tasks()
    (work / DONE).mkdir(exist_ok=True)
    done = {task: found for task in range(len(tasks)) if (found := read_result(work, task)) is not None}
    results = {**done, **known}
    for task in results:
        progress.advance(tasks[task][1])
    missing = [task for task in range(len(tasks)) if task not in results]
    if run_tasks is None:
        results.update(in_processes(step, missing, work, limits, progress.advance))
    else:
        for task, result in run_tasks(step, missing, work, limits):
            results[task] = result
            progress.advance(tasks[task][1])
    return [results[task] for task in range(len(tasks))]


def run_stage(
    step: Step, work: Path, limits: Limits, run_tasks: Runner | None
) -> tuple[Mapping[str, Any], list[TaskResult]]:
    """Run a step whose shards stay in the folder `work`, without a version: the facts, and the results of its tasks."""
    size = sum(size for _, size in step.tasks())
    if run_tasks is None:
        limits = limits.for_work(size, step.worker_bytes)
    facts = _prepare(step, work, limits)
    with report_progress(f"{step.name} {work.name}", size, "bytes") as progress:
        return facts, _run_tasks(step, work, limits, progress, run_tasks, {})


def in_processes(
    step: Step, missing: list[int], work: Path, limits: Limits, report: Callable[[int], None] = lambda amount: None
) -> Iterator[tuple[int, TaskResult]]:
    """Run tasks in processes of this machine; in this process if there is one task or one worker.

    Args:
        report: called with the bytes of input that were read.
    """
    tasks = step.tasks()
    sizes = [tasks[task][1] for task in missing]
    run = partial(run_task, step, work, limits)
    for index, result in call_each(run, missing, limits.workers, sizes, report, begin=return_memory):
        yield missing[index], result


def run_task(step: Step, work: Path, limits: Limits, task: int) -> TaskResult:
    """Make the shards of a task in `work`, and record that it is done."""
    with holding_work(work):
        result = _make_shards(step, work, limits, task)
        write_json(_result_path(work, task), plain(result))
    return result


def _make_shards(step: Step, work: Path, limits: Limits, task: int) -> TaskResult:
    rules: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    sources: list[Source] = []
    columns: dict[str, str] = {}
    parts: list[PartialProfile] = []  # of the shard that is being written
    profiles: list[PartialProfile] = []
    with (
        ShardWriter(work / OUT, f"{SHARDS}/{task:05d}") as shards,
        ShardWriter(work / OUT, f"{DROPPED}/{task:05d}") as dropped,
        ShardWriter(work / OUT, f"{QUARANTINE}/{task:05d}") as quarantine,
    ):
        for outcome in step.run(task, work / PREPARED, limits):
            if outcome.kept is not None:
                columns = columns or columns_of(outcome.kept)
                shards.add(outcome.kept)
                if step.has_profile:
                    parts.append(profile_rows(outcome.kept, step.kind))
                if len(shards.files) > len(profiles):  # it is whole
                    profiles.append(merge_profiles(parts))
                    parts = []
                parts = parts if len(parts) < MOST_PARTS else [merge_profiles(parts)]
            if outcome.dropped is not None and len(outcome.dropped):
                dropped.add(outcome.dropped)
                rules.update(outcome.dropped.column("rule").drop_null().to_pylist())
            if outcome.quarantine is not None and len(outcome.quarantine):
                quarantine.add(outcome.quarantine)
            facts.update(outcome.facts)
            sources += outcome.sources
    if len(shards.files) > len(profiles):
        profiles.append(merge_profiles(parts))
    return TaskResult(
        shards=tuple(shards.files),
        dropped=tuple(dropped.files),
        quarantine=tuple(quarantine.files),
        dropped_by=dict(sorted(rules.items())),
        facts=facts,
        sources=tuple(sources),
        columns=columns,
        profiles=tuple(profiles),
    )


def _result_path(work: Path, task: int) -> Path:
    return work / DONE / f"{task:05d}.json"


def read_result(work: Path, task: int) -> TaskResult | None:
    """The result of a task in the folder of its step; None if the task is not done."""
    try:
        result: TaskResult = RESULT.validate_python(parse_json(read_file(_result_path(work, task))))
    except (FileNotFoundError, ValueError):
        return None
    return result


def _manifest(step: Step, name: str, results: list[TaskResult], facts: Mapping[str, Any]) -> Manifest:
    rules: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    sources = {source.name: source for source in step.sources}
    columns: dict[str, str] = {}
    for index, result in enumerate(results):
        rules.update(result.dropped_by)
        counts.update(result.facts)
        sources.update({source.name: source for source in result.sources})
        if columns and result.columns and dict(result.columns) != columns:
            what = f"{step.tasks()[index][0]} has other columns than the rows before it"
            raise DataError(
                what, f"{dict(result.columns)} instead of {columns}", "give all of its files the same columns"
            )
        columns = columns or dict(result.columns)
    if any(result.sources for result in results):
        check_row_ids(sources.values())
    shards = tuple(shard for result in results for shard in result.shards)
    dropped = tuple(shard for result in results for shard in result.dropped)
    manifest = Manifest(
        name=name,
        kind=step.kind,
        columns=columns,
        rows=sum(shard.rows for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        shards=shards,
        dropped=dropped,
        dropped_by=dict(sorted(rules.items())),
        parents=_references(step),
        step=step.record,
        sources=tuple(sources[name] for name in sorted(sources)),
        code=code_of(step),
        aifx=__version__,
        facts=dict(sorted({**facts, **counts}.items())),
        quarantine=tuple(shard for result in results for shard in result.quarantine),
    )
    return replace(manifest, sha256=manifest.artifact().digest)
