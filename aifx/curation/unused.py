"""Versions that nothing refers to: found, and deleted with what was made of them alone.

A version stays if its name alone means it, a run, a label file, a recipe or a lease names it, or it is new. What it was
made from and what has files of it stays too, except for the parent of a version that `aifx data compact` made.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aifx.core.errors import UsageError
from aifx.core.files import FolderBusy, remove_folder
from aifx.core.project import cache_path
from aifx.curation.compact import Compact
from aifx.curation.history import find_manifest
from aifx.curation.leftovers import CollectedGarbage, Leftover
from aifx.curation.work_folders import holding_dataset
from aifx.data.versions.catalog import TOKENS, Catalog
from aifx.data.versions.leases import Use, leased_uses
from aifx.data.versions.lineage import made_at, record_removal
from aifx.data.versions.manifest import DROPPED, INDEXES, QUARANTINE, SHARDS, Manifest


def with_unused(found: CollectedGarbage, catalog: Catalog, uses: Iterable[Use], days: float) -> CollectedGarbage:
    """Add the versions that nothing refers to, which are deleted unless it is a dry run.

    Args:
        days: a version that was made less than so many days ago stays.
    """
    ended: Sequence[Leftover] = find_unused(catalog, uses, days)
    if not found.dry_run:
        ended = _delete_all(catalog, ended)
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
    return [
        Leftover(
            _url(catalog, found[whole]),
            "unused",
            catalog.store.total_bytes(found[whole].reference.replace("@", "/")),
            reasons.get(whole, ""),
        )
        for whole in _in_order_of_deletion(found)
        if found[whole].version != catalog.latest(found[whole].name)
    ]


def _in_order_of_deletion(found: Mapping[str, Manifest]) -> list[str]:
    """References of versions, each before those that it was made from and before those that have files of it.

    So a process that is killed between two deletions leaves no version without its files.
    """
    needed = {whole: [*one.parents, *_holders(one)] for whole, one in found.items()}
    order: dict[str, None] = {}  # each version after what it needs
    waiting = [(whole, False) for whole in reversed([*found])]
    entered: set[str] = set()  # versions that took files over from each other may need each other
    while waiting:
        whole, is_complete = waiting.pop()
        if is_complete:
            order[whole] = None
        elif whole in found and whole not in entered:
            entered.add(whole)
            waiting += [(whole, True), *((one, False) for one in needed[whole])]
    return [*reversed(order)]


def _url(catalog: Catalog, manifest: Manifest) -> str:
    return f"{catalog.store.url}/{manifest.reference.replace('@', '/')}"


def _holders(manifest: Manifest) -> list[str]:
    """The versions in whose folders some files of a version are."""
    return [f"{manifest.name}@{one}" for one in manifest.holders]


def _needs(manifest: Manifest) -> dict[str, str]:
    """The versions that a version needs, with the reason."""
    parents = () if manifest.step.name == Compact.name else manifest.parents
    needed = dict.fromkeys(parents, f"{manifest.reference} was made from it")
    return needed | dict.fromkeys(_holders(manifest), f"it has files of {manifest.reference}")


def _delete_all(catalog: Catalog, versions: Sequence[Leftover]) -> list[Leftover]:
    """Delete the unused ones of the versions that `find_unused` found, with what became of each."""
    going = {one.path for one in versions if not one.kept}
    needed: dict[str, str] = {}  # reasons, by version, of what a version needs that could not be deleted
    ended = []
    for one in versions:
        if one.path in going:
            name, _, version = one.path.removeprefix(f"{catalog.store.url}/").partition("/")
            with suppress(UsageError):  # another gc has deleted it
                manifest = catalog.manifest(f"{name}@{version}")
                if kept := _delete_unused(catalog, manifest, going, needed):
                    one = replace(one, kept=kept)
                    going.remove(one.path)
                    needed |= _needs(manifest)
        ended.append(one)
    return ended


def _delete_unused(catalog: Catalog, unused: Manifest, going: Collection[str], needed: Mapping[str, str]) -> str:
    """Delete a version. Returns the reason if it stays, since a process works in its data set or it is used now.

    Args:
        going: URLs of all versions that are to be deleted, which may have files of each other.
        needed: reasons by whole reference, of versions that stay in any case.
    """
    name, whole = unused.name, unused.whole_reference
    try:
        with holding_dataset(name, catalog, "deletes versions of it"):
            if catalog.latest(name) == unused.version:
                return f"{name} means it"
            leased = {use.reference: use.who for use in leased_uses(catalog.store)}
            if reason := needed.get(whole) or leased.get(whole):
                return reason
            for one in catalog.referring(name, {unused.sha256}):
                if _url(catalog, one) not in going:
                    return f"it has files of {one.reference}"
            record_removal(catalog, [unused])
            delete_version(catalog, unused)
    except FolderBusy as busy:
        return busy.why
    return ""


def delete_version(catalog: Catalog, manifest: Manifest) -> None:
    """Delete a version after its indexes, the tokens made of it, and its copy in the cache.

    As long as the version is there, a call that was killed can be repeated.
    """
    name, version = manifest.name, manifest.version
    shutil.rmtree(cache_path("datasets") / manifest.sha256, ignore_errors=True)
    for folder in (f"{TOKENS}/{version}", f"{name}/{INDEXES}/{version}", f"{name}/{version}"):
        if catalog.local is None:
            for part in (SHARDS, DROPPED, QUARANTINE):  # the manifest goes last: a folder without one would stay
                catalog.store.remove(f"{folder}/{part}")
            catalog.store.remove(folder)
        elif (path := catalog.local / folder).exists():
            remove_folder(path, str(path))
