"""Versions that nothing refers to: found, and deleted with what was made of them alone.

A version stays if its name alone means it, a run, a label file, a recipe or a lease names it, or it is new. What it was
made from and what has files of it stays too, except for the parent of a version that `aifx data compact` made.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter

from aifx.core.files import FolderBusy, remove_folder
from aifx.core.project import cache_path
from aifx.curation.compact import Compact
from aifx.curation.history import find_manifest
from aifx.curation.leases import Use
from aifx.curation.leftovers import CollectedGarbage, Leftover
from aifx.curation.work_folders import holding_dataset
from aifx.data.versions.catalog import TOKENS, Catalog
from aifx.data.versions.lineage import made_at, record_removal
from aifx.data.versions.manifest import INDEXES, Manifest


def with_unused(found: CollectedGarbage, catalog: Catalog, uses: Iterable[Use], days: float) -> CollectedGarbage:
    """Add the versions that nothing refers to, which are deleted unless it is a dry run.

    Args:
        days: a version that was made less than so many days ago stays.
    """
    versions = find_unused(catalog, uses, days)
    ended: Sequence[Leftover] = versions
    if not found.dry_run:
        unused = {one.path for one in versions if not one.kept}
        ended = [one if one.kept else _delete_unused(catalog, one, unused) for one in versions]
    deleted = [one for one in ended if not one.kept]
    return replace(
        found,
        deleted=(*found.deleted, *deleted),
        kept=(*found.kept, *(one for one in ended if one.kept)),
        bytes=found.bytes + sum(one.bytes for one in deleted),
    )


def find_unused(catalog: Catalog, uses: Iterable[Use], days: float) -> list[Leftover]:
    """All versions but the latest of each name: those that are used with the reason, the others in order of deletion.

    Args:
        days: a version that was made less than so many days ago stays.
    """
    found: dict[str, Manifest] = {}
    reasons: dict[str, str] = {}
    bound = datetime.now(UTC) - timedelta(days=days)
    for name in catalog.names():
        latest = catalog.latest(name)
        for version in catalog.versions(name):
            if (manifest := find_manifest(catalog, f"{name}@{version}")) is None:
                continue  # a damaged one stays
            whole = manifest.whole_reference
            found[whole] = manifest
            if version == latest:
                reasons[whole] = f"{name} means it"
            elif (time := made_at(catalog, whole)) is None:
                reasons[whole] = "no event says when it was made"
            elif datetime.fromisoformat(time) > bound:
                reasons[whole] = f"it was made less than {days:g} days ago"
    for use in uses:
        if use.reference not in reasons or "days ago" in reasons[use.reference]:
            reasons[use.reference] = use.who
    waiting = list(reasons)
    while waiting:
        if (manifest := found.get(waiting.pop())) is not None:
            for needed, why in _needs(manifest).items():
                if needed not in reasons:
                    reasons[needed] = why
                    waiting.append(needed)
    order = TopologicalSorter({whole: one.parents for whole, one in found.items()}).static_order()
    return [
        Leftover(
            f"{catalog.store.url}/{found[whole].reference.replace('@', '/')}",
            "unused",
            catalog.store.total_bytes(found[whole].reference.replace("@", "/")),
            reasons.get(whole, ""),
        )
        for whole in reversed([*order])
        if whole in found and found[whole].version != catalog.latest(found[whole].name)
    ]


def _needs(manifest: Manifest) -> dict[str, str]:
    """The versions that a version needs, with the reason."""
    parents = () if manifest.step.name == Compact.name else manifest.parents
    needed = dict.fromkeys(parents, f"{manifest.reference} was made from it")
    return needed | {f"{manifest.name}@{one}": f"it has files of {manifest.reference}" for one in manifest.holders}


def _delete_unused(catalog: Catalog, unused: Leftover, all_unused: Collection[str]) -> Leftover:
    """Delete a version that `find_unused` found, unless a process works in its data set or the version is used now.

    Args:
        all_unused: URLs of all versions that are to be deleted, which may have files of each other.
    """
    name, _, version = unused.path.removeprefix(f"{catalog.store.url}/").partition("/")
    try:
        with holding_dataset(name, catalog, "deletes versions of it"):
            if catalog.latest(name) == version:
                return replace(unused, kept=f"{name} means it")
            manifest = catalog.manifest(f"{name}@{version}")
            for one in catalog.referring(name, {manifest.sha256}):
                if f"{catalog.store.url}/{name}/{one.version}" not in all_unused:
                    return replace(unused, kept=f"it has files of {one.reference}")
            record_removal(catalog, [manifest])
            delete_version(catalog, manifest)
    except FolderBusy as busy:
        return replace(unused, kept=busy.why)
    return unused


def delete_version(catalog: Catalog, manifest: Manifest) -> None:
    """Delete a version after its indexes, the tokens made of it, and its copy in the cache.

    As long as the version is there, a call that was killed can be repeated.
    """
    name, version = manifest.name, manifest.version
    shutil.rmtree(cache_path("datasets") / manifest.sha256, ignore_errors=True)
    for folder in (f"{TOKENS}/{version}", f"{name}/{INDEXES}/{version}", f"{name}/{version}"):
        if catalog.local is None:
            catalog.store.remove(folder)
        elif (path := catalog.local / folder).exists():
            remove_folder(path, str(path))
