"""Results of the tasks of steps, and how a step finds in earlier versions what it would only do again.

A version keeps in `tasks.json` what each task that it ran did, with a key: a digest of all that the outcome depends on.
A task of a later version of the data set with the same key refers to the files of the earlier one. A task whose outcome
is a file of the parent, unchanged, refers to that. So a few new rows cost about what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from aifx.core.artifact import short, short_reference
from aifx.core.code_digest import Code
from aifx.core.digests import sha256_of, sha256_of_json
from aifx.core.errors import DataError
from aifx.core.json_values import plain
from aifx.core.parsing import parse_json
from aifx.curation.profile import PartialProfile, merge_profiles, profile_rows
from aifx.curation.step import Step
from aifx.data.names import Kind
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import DROPPED, QUARANTINE, SHARDS, TASKS, Origin, ShardFile, Source, Version
from aifx.data.versions.shards import read_parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskResult:
    """The result of a task, in `done/<task>.json`, and in `tasks.json` of the version.

    Attributes:
        profiles: of the rows of each shard.
        key: see `task_key`; "" if the outcome must not stand for that of another task.
    """

    shards: tuple[ShardFile, ...] = ()
    dropped: tuple[ShardFile, ...] = ()
    quarantine: tuple[ShardFile, ...] = ()
    dropped_by: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[PartialProfile, ...] = ()
    key: str = ""

    @property
    def files(self) -> tuple[ShardFile, ...]:
        return (*self.shards, *self.dropped, *self.quarantine)

    def of_task(self, task: int, holder: str) -> TaskResult:
        """The same result for a task of another version, whose files stay where they are.

        Args:
            holder: digest of the version that has the result.
        """

        def named(files: Sequence[ShardFile], folder: str) -> tuple[ShardFile, ...]:
            return tuple(
                file.held_by(holder, f"{folder}/{task:05d}-{number:03d}.parquet") for number, file in enumerate(files)
            )

        return replace(
            self,
            shards=named(self.shards, SHARDS),
            dropped=named(self.dropped, DROPPED),
            quarantine=named(self.quarantine, QUARANTINE),
        )


RESULT = TypeAdapter(TaskResult)
_RESULTS = TypeAdapter(tuple[TaskResult, ...])


def task_key(step: Step, code: Code, inputs: Any) -> str:
    """A digest of all that the outcome of a task depends on; "" if the step does not say what that is."""
    return "" if inputs is None else sha256_of_json(plain([step.name, code, inputs]))


def tasks_document(results: Sequence[TaskResult]) -> list[Any]:
    """The content of `tasks.json`: the results of the tasks that the version ran, without those that it refers to."""
    own = [one for one in results if not any(file.holder for file in one.files) and (one.files or one.key)]
    return [plain(one if one.key else replace(one, sources=())) for one in own]


def read_tasks(catalog: Catalog, name: str, version: str, sha256: str | None = None) -> tuple[TaskResult, ...]:
    """The results of the tasks that a version ran; none if its file cannot be read, since they can be had again.

    Args:
        sha256: of the file, by the manifest; None if that may be about to change.
    """
    data = catalog.store.read(f"{name}/{version}/{TASKS}")
    try:
        return _RESULTS.validate_python(parse_json(data)) if data and sha256 in (None, sha256_of(data)) else ()
    except ValueError:
        return ()


def earlier_results(
    step: Step, catalog: Catalog, origins: Mapping[str, Origin], code: Code, keys: Mapping[int, str]
) -> dict[int, TaskResult]:
    """The results of tasks that the same step did for an earlier version of the data set, by task.

    A version is passed over if one of the files of its tasks is damaged or gone.

    Args:
        keys: of the tasks.
    """
    wanted = {key: task for task, key in keys.items() if key}
    found: dict[int, TaskResult] = {}
    made = [one for one in origins.values() if one.step.name == step.name and one.code == code]
    for origin in made if wanted else ():
        name, _, digest = origin.reference.partition("@")
        results = read_tasks(catalog, name, short(digest), origin.tasks_sha256)
        same = {
            wanted[result.key]: result.of_task(wanted[result.key], digest)
            for result in results
            if result.key in wanted and wanted[result.key] not in found
        }
        if same and _are_intact(catalog, origin.reference, results):
            found.update(same)
        if len(found) == len(wanted):
            break
    return found


def _are_intact(catalog: Catalog, reference: str, results: Sequence[TaskResult]) -> bool:
    """Whether the files of the tasks that a version ran are as they were."""
    shards = [file for result in results for file in result.shards]
    others = [file for result in results for file in (*result.dropped, *result.quarantine)]
    try:
        catalog.held_files(reference, shards, others)
    except DataError as e:
        logger.warning(f"{short_reference(reference)} is not used again, and its tasks run again: {e.why}")
        return False
    return True


class KeptFiles:
    """Results of tasks whose outcome is an unchanged file of the parent."""

    def __init__(self, parent: Version, catalog: Catalog) -> None:
        self._parent, self._catalog = parent, catalog
        self._profiles = cache(self._read_profiles)

    def result(self, file: ShardFile, task: int) -> TaskResult:
        """The result for a file in the shards or in the quarantine of the parent."""
        manifest = self._parent.manifest
        if file in manifest.quarantine:
            return TaskResult(quarantine=(file,)).of_task(task, manifest.sha256)
        known = self._profiles(file.holder or manifest.sha256).get(file.stored_as or file.name)
        profile = known or self._profile(file, manifest.kind)
        result = TaskResult(shards=(file,), columns=manifest.columns, profiles=(profile,))
        return result.of_task(task, manifest.sha256)

    def _read_profiles(self, holder: str) -> dict[str, PartialProfile]:
        """The profiles of the shards that a version holds, by name."""
        return {
            shard.name: profile
            for result in read_tasks(self._catalog, self._parent.manifest.name, short(holder))
            for shard, profile in zip(result.shards, result.profiles, strict=True)
        }

    def _profile(self, file: ShardFile, kind: Kind) -> PartialProfile:
        return merge_profiles(profile_rows(rows, kind) for rows in read_parts(self._parent.path_of(file)))
