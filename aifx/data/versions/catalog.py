"""The data sets below a root: versions by name, the comparison of their files with SHA-256, their rows for training.

`SHA256SUMS` lists every file of a version as sha256sum does, so that `sha256sum -c SHA256SUMS` needs no aifx. Its first
line, a comment to sha256sum, has the SHA-256 of the rest. If the manifest is damaged, the other files are compared with
it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

from aifx.core.artifact import (
    MANIFEST,
    SHORT_DIGITS,
    Artifact,
    DamagedArtifact,
    Files,
    SealedFile,
    check_once,
    mark_checked,
    missing_file,
    parse_artifact,
    parse_files,
    short,
    short_reference,
)
from aifx.core.artifact_copies import copy_artifact, damaged_in_store, fetch_artifact
from aifx.core.errors import AifxError, DataError, UsageError, did_you_mean
from aifx.core.files import UnsafeFile
from aifx.core.parsing import fault_in
from aifx.core.progress import Reporter, report_progress
from aifx.core.project import Project, cache_path
from aifx.core.stores import Store, open_store
from aifx.data.names import CLUSTER, FILE_KEYS, SPLIT, Kind
from aifx.data.readers.parquet import read_batches
from aifx.data.splits import SPLITS, Split
from aifx.data.versions.leases import hold_for_reading
from aifx.data.versions.manifest import (
    COMING,
    DROPPED,
    KIND,
    LATEST,
    QUARANTINE,
    SHARDS,
    SUMS,
    VERSION,
    Manifest,
    Origin,
    RowFile,
    Version,
    origin_in,
    path_in,
    read_version,
    sums_of,
    sums_text,
)
from aifx.data.versions.requests import read_meaning, write_meaning

logger = logging.getLogger(__name__)

MIX = "mix"
"""The step of a version that has no rows of its own, and names those of its parents with weights."""

JOIN = "join"
"""The step of a version whose rows are those of its first parent, with columns of its second one."""

FEEDBACK = "feedback"
"""The step of a version whose rows are those of its first parent that have an outcome, which others may have."""

TOKENS = ".tokens"
"""The folder below a root of data sets that holds token stores, in a folder for each version."""

DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LEAST_DIGITS = 4
_VERSION = re.compile(r"[0-9a-f]{4,64}")
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_HELD = re.compile(rf"\.\./[0-9a-f]{{{SHORT_DIGITS}}}/(?!.*\.\.)")


@dataclass(frozen=True)
class Catalog:
    """The data sets below one root.

    Attributes:
        store: the root, which need not exist.
        project: whose commands read the data sets; None if they do that without one.
    """

    store: Store
    project: Project | None = field(default=None, compare=False, kw_only=True)

    @property
    def local(self) -> Path | None:
        """The root, if it is a folder on this machine."""
        return self.store.folder

    def names(self) -> list[str]:
        """The data sets that have a version."""
        return sorted(name for name in self.store.folders("") if _can_name(name) and self.latest(name))

    def versions(self, name: str) -> list[str]:
        """The complete versions of a data set, by name."""
        found = [folder for folder in self.store.folders(name) if _VERSION.fullmatch(folder)]
        return sorted(version for version in found if self._has_version(name, version))

    def holds(self, reference: str) -> bool:
        """Whether a version that a manifest names as a parent is still there."""
        name, _, digits = reference.partition("@")
        return self._has_version(name, short(digits))

    def _has_version(self, name: str, version: str) -> bool:
        return self.store.size(f"{name}/{version}/{MANIFEST}") is not None

    def origins(self, name: str) -> dict[str, Origin]:
        """What made each version of a data set, by whole reference. One that is damaged is logged and left out."""
        found = {}
        folders = [f"{folder}/{MANIFEST}" for folder in self.store.folders(name) if _VERSION.fullmatch(folder)]
        for file, data in self.store.below(name).read_many(folders):
            try:
                origin = origin_in(data)
                if short_reference(origin.reference) != f"{name}@{file.partition('/')[0]}":
                    raise ValueError(f"it is that of {short_reference(origin.reference)}")
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                where = f"{self.store.url}/{name}/{file}"
                logger.warning(f"{where} is damaged, and no step looks at its version: {fault_in(e)}")
            else:
                found[origin.reference] = origin
        return found

    def incomplete_versions(self, name: str) -> list[str]:
        """The folders of a data set that would be versions if they had a manifest."""
        found = {folder for folder in self.store.folders(name) if _VERSION.fullmatch(folder)}
        return sorted(found.difference(self.versions(name)))

    def latest(self, name: str) -> str | None:
        """The version that was made last; None if there is none."""
        return read_meaning(self.store.below(check_dataset_name(name))).version

    def set_latest(self, name: str, version: str) -> None:
        """Let the name alone mean a version."""
        folder = self.store.below(name)
        write_meaning(folder, version, read_meaning(folder).last)

    def find(self, reference: str) -> tuple[str, str]:
        """The name and the folder that "name" or "name@3f2a" means, with 4 to 64 digits. Raises UsageError.

        Digits beyond those of the folder's name are compared with the manifest. Raises DataError if that is damaged.
        """
        name, version, digits = self._find_folder(reference)
        if len(digits) > len(version):
            self._read(name, version, digits)
        return name, version

    def _find_folder(self, reference: str) -> tuple[str, str, str]:
        """The name and the folder, and the digits that are given. Raises UsageError."""
        name, at, beginning = reference.partition("@")
        check_dataset_name(name)
        if not at:
            version = self.latest(name)
            if version is None:
                raise self._unknown(name)
            if not _VERSION.fullmatch(version) or not self._has_version(name, version):
                what, why = f"{self.store.url}/{name}/{LATEST} is damaged", f"there is no version {version[:20]!r}"
                hint = f"aifx data ls {name}, and write the version that you want into its first line"
                raise DataError(what, why, hint)
            return name, version, ""
        digits = short(beginning)
        if len(digits) == SHORT_DIGITS and _VERSION.fullmatch(digits) and self._has_version(name, digits):
            return name, digits, beginning  # without a look at all others
        known = self.versions(name)
        if not known:
            raise self._unknown(name)
        if len(beginning) < LEAST_DIGITS:
            raise self._no_version(name, digits, f"a version is named by {LEAST_DIGITS} hexadecimal digits or more")
        matching = [version for version in known if version.startswith(digits)]
        if len(matching) != 1:
            why = f"{len(matching)} versions begin with {digits!r}" if matching else did_you_mean(digits, known)
            raise self._no_version(name, digits, why)
        return name, matching[0], beginning

    def _no_version(self, name: str, digits: str, why: str) -> UsageError:
        reference = f"{name}@{digits}"
        return UsageError(f"{reference!r} names no version in {self.store.url}", why, f"aifx data ls {name}")

    def _unknown(self, name: str) -> UsageError:
        why, hint = "there is no data set yet", f"aifx data add {name} FILES --license SPDX"
        if name in FILE_KEYS:
            why, hint = "it is a key of aifx.toml, and its files are no data set", f"aifx data show {name}"
        elif names := self.names():
            why, hint = did_you_mean(name, names), "aifx data ls"
        return UsageError(f"no data set {name!r} in {self.store.url}", why, hint)

    def manifest(self, reference: str) -> Manifest:
        """The manifest of the version that `reference` means. Raises UsageError, DataError if it is damaged."""
        return self._read(*self._find_folder(reference))[1]

    def open(self, reference: str) -> Version:
        """The version that `reference` means. If the root is remote, its files are copied when they are needed.

        On a root that projects share, `aifx data gc` keeps it for some days from then on. A copied file is compared
        with its SHA-256; `check_files` compares those of a local root.
        Raises UsageError, DataError if it is damaged, EnvironmentFault if the store fails.
        """
        name, version, digits = self._find_folder(reference)
        _, manifest = self._read(name, version, digits)
        hold_for_reading(self.store, self.project, manifest.whole_reference)
        return self.version_in(self._folder(name, manifest.sha256), manifest)

    def version_in(self, folder: Path, manifest: Manifest) -> Version:
        """A version of which a folder of this machine has the files that it holds itself."""
        folders = {holder: self._folder(manifest.name, holder) for holder in manifest.holders}
        return Version(folder, manifest, folders, None if self.local is not None else self.store.below(manifest.name))

    def _folder(self, name: str, digest: str) -> Path:
        """The folder of a version on this machine: of a remote one, in the cache."""
        return self.local / name / short(digest) if self.local is not None else cache_path("datasets") / digest

    def keep_copy(self, made: Version) -> None:
        """Move the files of a version in a remote root from the folder where it was made into the cache."""
        folder = self._folder(made.manifest.name, made.manifest.sha256)
        for file in made.manifest.files:
            if not file.holder:
                (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(made.path / file.name, folder / file.name)
                own = Artifact(KIND, VERSION, {}, {file.name: SealedFile(file.bytes, file.sha256)})
                mark_checked(folder, own, own.files)

    def held_files(self, reference: str, shards: Sequence[RowFile], others: Sequence[RowFile]) -> None:
        """Check files that a version holds, which is named by its whole reference.

        Of a local root, shards are compared with their SHA-256 as `check_shards` does. Others are compared by their
        sizes, and all of a remote root, which are compared with their SHA-256 when they are copied.
        Raises DataError for a damaged or missing file, EnvironmentFault if the store fails.
        """
        name, _, holder = reference.partition("@")
        held, more = ({one.name: SealedFile(one.bytes, one.sha256) for one in files} for files in (shards, others))
        folder = f"{name}/{short(holder)}"
        with _damaged_data():
            if self.local is None:
                parts = {one.rpartition("/")[0] for one in held | more}
                sizes = {f"{part}/{one}": size for part in parts for one, size in self.store.sizes(f"{folder}/{part}")}
                for one, file in (held | more).items():
                    if sizes.get(one) != file.bytes:
                        raise DamagedArtifact(f"{self.store.url}/{folder}", f"{one} is missing or has another size")
                return
            check_once(self.local / folder, Artifact(KIND, VERSION, {}, held), held)
            if why := missing_file(self.local / folder, more):
                raise DamagedArtifact(f"{self.store.url}/{folder}", why)

    def referring(self, name: str, holders: Collection[str]) -> list[Manifest]:
        """The other versions of a data set that have files in the folders of some.

        Args:
            holders: digests of versions.

        A version whose manifest cannot be read is left out.
        """
        found = []
        for version in self.versions(name):
            with suppress(DataError):
                manifest = self.manifest(f"{name}@{version}")
                if manifest.sha256 not in holders and not set(holders).isdisjoint(manifest.holders):
                    found.append(manifest)
        return found

    def _read(self, name: str, version: str, digits: str) -> tuple[Artifact, Manifest]:
        """The version in a folder. Raises UsageError if its digest does not begin with these digits, DataError."""
        store = self.store.below(f"{name}/{version}")
        found = read_version(store, version)
        if found is None:
            raise DataError(f"no {store.url}/{MANIFEST}", "the version is not complete", f"aifx data ls {name}")
        artifact, manifest = found
        if not manifest.sha256.startswith(digits):
            raise self._no_version(name, digits, f"{manifest.reference} is {manifest.whole_reference}")
        return artifact, manifest

    def publish(self, version: Version) -> None:
        """Copy a version from a folder of this machine to a remote root; its manifest goes last."""
        source, target = open_store(str(version.path)), self.store.below(version.reference.replace("@", "/"))
        found = read_version(source, version.manifest.version)
        assert found is not None
        artifact, _ = found
        target.write(SUMS, iter([sums_of(artifact)]))
        with _damaged_data():
            copy_artifact(source, artifact, target)


def fetch(store: Store, artifact: Artifact, folder: Path, *, is_whole: bool = True) -> Path:
    """Fill `folder` of the cache as `fetch_artifact` does, and return it. Raises DataError if it is damaged."""
    with _damaged_data():
        return fetch_artifact(store, artifact, folder, is_whole=is_whole)


def open_catalog(root: str, project: Project | None = None) -> Catalog:
    """The data sets at a URL or folder, relative to the project. Raises UsageError for a URL that cannot be opened."""
    if "://" in root:
        return Catalog(open_store(root), project=project)
    folder = (project.root if project else Path.cwd()) / Path(root).expanduser()
    return Catalog(open_store(str(folder)), project=project)


@contextmanager
def _damaged_data() -> Iterator[None]:
    """Raise DataError for an artefact that is damaged."""
    try:
        yield
    except DamagedArtifact as e:
        raise DataError(e.what, e.why, "aifx data verify") from e


def check_dataset_name(name: str) -> str:
    """`name`. Raises UsageError for what is not a plain folder name."""
    if not _can_name(name):
        why = "a data set's name is letters, digits, '.', '_' and '-', 100 at most, and begins with a letter or digit"
        raise UsageError(f"{name!r} cannot name a data set", why, "aifx data ls")
    return name


def _can_name(name: str) -> bool:
    return bool(DATASET_NAME.fullmatch(name)) and name != LATEST


@dataclass(frozen=True)
class CheckedFiles:
    """The files of a version after they were read.

    Attributes:
        damages: each damaged or missing file, and why.
    """

    files: int
    bytes: int
    damages: tuple[str, ...]


ReadFiles: TypeAlias = dict[tuple[str, str, SealedFile], str]
"""Damage of files that were read, or "": by the URL of the version, the name in it, and what is expected."""


def check_files(store: Store, name: str, version: str, read: ReadFiles | None = None) -> CheckedFiles:
    """Read every file of a version and compare it with its SHA-256.

    Args:
        store: the version's folder.
        name: of the data set.
        read: files of several versions that were read already, to which those of this version are added.
    """
    read = {} if read is None else read
    artifact, damages = _read_manifest(store, name, version), list[str]()
    try:
        sums = store.read(SUMS)
    except UnsafeFile:  # a link or a FIFO
        sums = b""
    rewritten: set[str] = set()
    if isinstance(artifact, Artifact):
        is_same = sums == sums_of(artifact)
        if (coming := _coming(store)) is not None:
            is_same = is_same or sums == sums_of(coming)
            damaged = {damage.partition(" ")[0] for damage in damaged_in_store(store, coming.descriptions)}
            rewritten = {*coming.descriptions} - damaged
    else:
        damages.append(f"{MANIFEST} {artifact}")
        artifact = Artifact(KIND, VERSION, {}, _listed_files(store, sums or b""))
        is_same = bool(artifact.files)
    if not is_same:
        damages.append(f"{SUMS} {'is missing' if sums is None else 'has other bytes than were written'}")
    size = sum(file.bytes for file in artifact.every_file.values()) + (store.size(MANIFEST) or 0)
    with report_progress(f"reading {store.url}", size, "bytes") as progress:
        own = _damages(store, artifact.own_files, read, progress)
        damages += [damage for damage in own if damage.partition(" ")[0] not in rewritten]
        for holder, files in sorted(artifact.files_elsewhere.items()):
            found = _damages(store.beside(short(holder)), files, read, progress)
            damages += [f"{path_in(holder, damage)} ({name}@{short(holder)} holds it)" for damage in found]
    for folder in (SHARDS, DROPPED, QUARANTINE):
        stored = sorted(f"{folder}/{file}" for file in store.files(folder))
        damages += [f"{file} is no file of this version" for file in stored if file not in artifact.files]
    return CheckedFiles(len(artifact.every_file) + 1, size, tuple(damages))


def _damages(store: Store, files: Files, read: ReadFiles, progress: Reporter) -> list[str]:
    """The damage of files, of which only those are read that no version before had."""
    unread = {name: file for name, file in files.items() if (store.url, name, file) not in read}
    found = damaged_in_store(store, unread, progress)
    for name, file in unread.items():
        read[store.url, name, file] = next((damage for damage in found if damage.startswith(f"{name} ")), "")
    return [damage for name, file in files.items() if (damage := read[store.url, name, file])]


def check_shards(version: Version) -> None:
    """Compare the shards with the manifest, unless they are as they were when they were last compared or written.

    Files from a remote root are compared when they are copied. Raises DataError for a damaged or missing one.
    """
    if version.remote is not None:
        return
    size = version.manifest.bytes
    with report_progress(f"verifying {version.reference}", size, "bytes") as progress:
        for holder, folder, part in _shards_by_folder(version):
            try:
                check_once(folder, part, part.files, progress)
            except DamagedArtifact as e:
                whose = f" ({version.manifest.name}@{short(holder)} holds it)" if holder else ""
                what, hint = f"{version.reference}: {e.why}{whose}", f"aifx data verify {version.reference}"
                raise DataError(what, "its manifest has the SHA-256 of each file", hint) from e


def mark_shards(version: Version) -> None:
    """Record that the shards of a version, as they are now, are those of its manifest."""
    for _, folder, part in _shards_by_folder(version):
        mark_checked(folder, part, part.files)


def _shards_by_folder(version: Version) -> Iterator[tuple[str, Path, Artifact]]:
    """The shards in each folder, as an artefact, with the digest of the version that holds them, or ""."""
    manifest = version.manifest
    own = {shard.name: SealedFile(shard.bytes, shard.sha256) for shard in manifest.shards if not shard.holder}
    yield "", version.path, Artifact(KIND, VERSION, {}, own)
    held: dict[str, dict[str, SealedFile]] = {}
    for shard in manifest.shards:
        if shard.holder:
            held.setdefault(shard.holder, {})[shard.stored_as] = SealedFile(shard.bytes, shard.sha256)
    for holder, files in held.items():
        yield holder, version.folders[holder], Artifact(KIND, VERSION, {}, files)


def _listed_files(store: Store, sums: bytes) -> dict[str, SealedFile]:
    """The version's own files in SHA256SUMS but the manifest; none if it is damaged, or names one outside of them."""
    text = sums.decode("utf-8", "replace")
    digests = {name: digest for digest, name in _LINE.findall(text)}
    if text != sums_text(digests):
        return {}
    digests = {name: digest for name, digest in digests.items() if not _HELD.match(name) and name != MANIFEST}
    try:
        files = parse_files({name: {"bytes": 0, "sha256": digest} for name, digest in digests.items()})
    except ValueError:
        return {}
    return {name: SealedFile(store.size(name) or 0, file.sha256) for name, file in files.items()}


def _coming(store: Store) -> Artifact | None:
    """The manifest that a version gets next. A killed `take_over` may have written descriptions that belong to it."""
    if (data := store.read(COMING)) is not None:
        with suppress(AifxError):
            return parse_artifact(data, store.url, KIND, VERSION)
    return None


def _read_manifest(store: Store, name: str, version: str) -> Artifact | str:
    """The version, or the reason why its manifest cannot be used."""
    try:
        found = read_version(store, version)
    except DataError as e:
        return f"is damaged: {e.why.removeprefix(f'{MANIFEST}: ')}"
    if found is None:
        return "is missing"
    artifact, manifest = found
    return artifact if manifest.name == name else f"is that of {manifest.name!r}"


@dataclass(frozen=True)
class DatasetPart:
    """A version that training reads, alone or as a part of a mix.

    Attributes:
        weight: its share in what training reads, in proportion to those of the other parts.
        epochs: how often training may read each of its rows; without a bound if None.
    """

    catalog: Catalog
    manifest: Manifest
    weight: float = 1.0
    epochs: float | None = None

    @property
    def reference(self) -> str:
        return self.manifest.reference

    @cached_property
    def version(self) -> Version:
        """Its files on this machine, compared with their digests before they are first read.

        Raises DataError for a damaged one.
        """
        version = self.catalog.open(self.manifest.whole_reference)
        if self.catalog.local is not None:  # what comes from elsewhere is compared when it is copied
            check_shards(version)
        return version

    def has_column(self, name: str) -> bool:
        return name in self.manifest.columns

    def split_of(self, value: Any) -> Split:
        """A value of the column `_split`. Raises DataError if it is none."""
        if value not in SPLITS:
            what = f"{self.reference}: {value!r} in column {SPLIT} is no split"
            raise DataError(what, f"splits are {', '.join(SPLITS)}", f"aifx data split {self.manifest.name}")
        return cast(Split, value)

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Path, Any]]:
        """Columns of its rows in pyarrow.RecordBatches, each with the file that it is from. Raises DataError."""
        for path in self.version.shards:
            for batch in read_batches(path, f"{self.reference}: {path.name}", columns):
                yield path, batch

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises DataError."""
        return [value for _, batch in self.batches([name]) for value in batch.column(0).to_pylist()]

    def warn_of_duplicates(self, *held_out: float) -> None:
        """Log a warning if near-duplicates of training rows may be in the shares that training itself holds out."""
        is_clustered = self.has_column(SPLIT) or self.has_column(CLUSTER)
        if any(held_out) and self.manifest.rows > 1 and not is_clustered:
            logger.warning(
                f"{self.reference} has no column {SPLIT} or {CLUSTER}: near-duplicates of training rows may be in "
                f"the held-out splits; this keeps them apart: aifx data split {self.manifest.name}"
            )

    def tokens_folder(self, name: str) -> Path:
        """The folder for the token store `name`: beside the data set, or in the cache if that cannot be written."""
        if self.catalog.local is not None:
            beside = self.catalog.local / TOKENS / self.manifest.version
            with suppress(OSError):
                if not (beside / name).is_dir():
                    beside.mkdir(parents=True, exist_ok=True)
                if (beside / name).is_dir() or os.access(beside, os.W_OK):
                    return beside
        return cache_path("tokens")


def rows_and_bytes(manifest: Manifest) -> tuple[int, int]:
    """The rows that training reads of a version, and their bytes: of a mix, all of its parents."""
    if manifest.step.name == MIX:
        return manifest.facts["mixed_rows"], manifest.facts["mixed_bytes"]
    return manifest.rows, manifest.bytes


def check_own_rows(manifest: Manifest, command: str) -> None:
    """Raise UsageError for a mix, whose rows are those of its parents. `command`: to use with one of them."""
    if manifest.step.name == MIX:
        parents = [short_reference(parent) for parent in manifest.parents]
        what = f"{manifest.reference} is a mix, which has no rows of its own"
        raise UsageError(what, f"it is made of {', '.join(parents)}", f"{command} {parents[0]}")


def open_parts(reference: str, project: Project, kind: Kind) -> tuple[DatasetPart, ...]:
    """The version that `data.dataset` names, or the parts of a mix. Reads manifests alone.

    Raises UsageError if there is no such version, DataError if it is damaged or of another kind.
    """
    catalog = open_catalog(project.datasets, project)
    manifest = catalog.manifest(reference)
    if manifest.kind not in (kind, "table" if kind == "chat" else kind):  # the rows of a table may be chats
        what = f"{manifest.reference} holds {manifest.kind}, and the task reads {kind}"
        raise DataError(what, "data.dataset names it", "aifx data ls")
    if manifest.step.name != MIX:
        if not manifest.rows:
            why = f"aifx data {manifest.step.name} made it, and left no row"
            raise DataError(f"{manifest.reference} has no rows", why, f"aifx data lineage {manifest.reference}")
        return (DatasetPart(catalog, manifest),)
    settings = manifest.step.settings
    parts = zip(manifest.parents, settings["weights"], settings["epochs"], strict=True)
    return tuple(DatasetPart(catalog, catalog.manifest(parent), *how) for parent, *how in parts)


def whole_reference(reference: str, project: Project, before: str | None = None) -> str:
    """ "name@<64 digits>". `before`, if `reference` can mean it; otherwise the latest that it means.

    Raises UsageError.
    """
    name, _, beginning = reference.partition("@")
    if before is not None:
        known, _, version = before.partition("@")
        if known == name and version.startswith(beginning):
            return before
    return open_catalog(project.datasets, project).manifest(reference).whole_reference


def dataset_record(reference: str, project: Project) -> Mapping[str, Any]:
    """The record of a data set in provenance.json: the version, "name@<64 digits>", and those of a mix."""
    manifest = open_catalog(project.datasets, project).manifest(reference)
    record: dict[str, Any] = {"reference": manifest.whole_reference}
    if manifest.step.name == MIX:
        settings = manifest.step.settings
        parts = zip(manifest.parents, settings["weights"], settings["epochs"], strict=True)
        record["parts"] = [{"reference": one, "weight": weight, "epochs": epochs} for one, weight, epochs in parts]
    return record
