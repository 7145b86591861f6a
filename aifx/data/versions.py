"""Immutable versions of data sets on disk: their manifests, their names, and where they are.

    datasets/<name>/latest              the version that `<name>` alone means
    datasets/<name>/<version>/
        manifest.json                   written last: a folder without it is no version
        SHA256SUMS                      of every file, as sha256sum writes and checks it
        croissant.json
        shards/*.parquet                the rows
        dropped/*.parquet               the rows that the step left out: row, step, rule, twin
        quarantine/*.parquet            what could not be read of the sources: source, line, reason, value
        profile.json

A version's name is the beginning of a SHA-256 over its manifest, which holds the SHA-256 of each shard. The root may be
a folder or any URL that fsspec knows. A version of a remote root is copied into the cache before it is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of, sha256_of_file
from aifx.core.errors import DataError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.files import replacing
from aifx.core.json_values import encode_json, plain
from aifx.core.parsing import parse_json
from aifx.core.progress import Reporter, report_progress
from aifx.core.project import Project, cache_path
from aifx.core.stores import Store, open_store

MANIFEST, CROISSANT, PROFILE, SUMS, LATEST, LINEAGE = (
    "manifest.json", "croissant.json", "profile.json", "SHA256SUMS", "latest", "lineage.jsonl"
)  # fmt: skip
SHARDS, DROPPED, QUARANTINE = "shards", "dropped", "quarantine"
INDEXES = "indexes"
"""The folder of a data set that holds the indexes of its versions, in a folder for each."""

ROW, SOURCE, SPLIT, CLUSTER = "_row", "_source", "_split", "_cluster"
"""Columns that aifx adds: the row's id; the source that it came from; the split and the duplicate cluster it is in."""

RESERVED = (ROW, SOURCE, SPLIT, CLUSTER)
TEXT_TYPES = ("string", "large_string")
"""Types of columns with texts, as manifests name them."""

FORMAT = 1
VERSION_DIGITS = 12
DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9a-f]{4,64}")

Kind: TypeAlias = Literal["text", "table", "images"]


@dataclass(frozen=True)
class ShardFile:
    """A Parquet file of a version.

    Attributes:
        name: relative to the version's folder, such as "shards/00000.parquet".
    """

    name: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Source:
    """A file from which rows came.

    Attributes:
        name: the value of `_source` in its rows: a path or URL, without credentials.
        license: an SPDX expression, or "unknown".
        rows: that were read of it.
        quarantined: rows of it that could not be read.
        reading: how it was read: its format and the options that its rows depend on.
        stamp: what its store records with this content of a remote file, such as an ETag; "" for a local file.
    """

    name: str
    sha256: str
    bytes: int
    rows: int
    license: str
    quarantined: int = 0
    reading: str = ""
    stamp: str = ""


@dataclass(frozen=True)
class StepRecord:
    """The step that made a version: enough to run it again.

    Attributes:
        version: of the step's algorithm; it rises if the same settings would keep other rows.
        code: version of aifx.
    """

    name: str
    version: int
    settings: Mapping[str, Any]
    code: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. It has no time and no path of a machine: the same rows give the same bytes.

    Attributes:
        name: of the data set; not part of the version's name.
        columns: Arrow type by column.
        parents: versions that this one was made from, as "name@version".
        dropped_by: number of dropped rows by rule.
        sha256: of the rest of the manifest without `name`; its beginning is the version's name.
    """

    name: str
    kind: Kind
    columns: Mapping[str, str]
    rows: int
    bytes: int
    shards: tuple[ShardFile, ...]
    dropped: tuple[ShardFile, ...]
    dropped_by: Mapping[str, int]
    parents: tuple[str, ...]
    step: StepRecord
    sources: tuple[Source, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # that the step found, such as a threshold
    quarantine: tuple[ShardFile, ...] = ()
    format: int = FORMAT
    sha256: str = ""

    @property
    def files(self) -> tuple[ShardFile, ...]:
        """All of its Parquet files."""
        return (*self.shards, *self.dropped, *self.quarantine)

    @property
    def version(self) -> str:
        return self.sha256[:VERSION_DIGITS]

    @property
    def reference(self) -> str:
        """ "name@version", as the command line and `data.dataset` take it."""
        return f"{self.name}@{self.version}"

    @property
    def licenses(self) -> tuple[str, ...]:
        return tuple(sorted({source.license for source in self.sources}))

    def content_digest(self) -> str:
        """SHA-256 of all but the name and this digest."""
        content = {key: value for key, value in plain(self).items() if key not in ("name", "sha256")}
        return sha256_of(encode_json(dict(sorted(content.items()))))


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Version:
    """A version in a folder on this machine.

    Attributes:
        path: the folder.
    """

    path: Path
    manifest: Manifest

    @property
    def reference(self) -> str:
        return self.manifest.reference

    @property
    def shards(self) -> tuple[Path, ...]:
        """The Parquet files with its rows, in order."""
        return tuple(self.path / shard.name for shard in self.manifest.shards)

    @property
    def dropped(self) -> tuple[Path, ...]:
        return tuple(self.path / shard.name for shard in self.manifest.dropped)

    @property
    def quarantine(self) -> tuple[Path, ...]:
        return tuple(self.path / shard.name for shard in self.manifest.quarantine)

    def damaged_shards(self) -> Iterator[str]:
        """Each shard that differs from the manifest, and how."""
        shards = self.manifest.shards
        with report_progress(f"verifying {self.reference}", sum(shard.bytes for shard in shards), "bytes") as progress:
            for shard in shards:
                if problem := _problem(self.path / shard.name, shard, progress):
                    yield f"{shard.name} {problem}"


@dataclass(frozen=True)
class Catalog:
    """The data sets below one root.

    Attributes:
        store: the root, which need not exist.
    """

    store: Store

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
        return sorted(version for version in found if self.store.size(f"{name}/{version}/{MANIFEST}") is not None)

    def incomplete_versions(self, name: str) -> list[str]:
        """The folders of a data set that would be versions if they had a manifest."""
        found = {folder for folder in self.store.folders(name) if _VERSION.fullmatch(folder)}
        return sorted(found.difference(self.versions(name)))

    def latest(self, name: str) -> str | None:
        """The version that was made last; None if there is none."""
        data = self.store.read(f"{check_dataset_name(name)}/{LATEST}")
        return data.decode(errors="replace").strip() if data is not None else None

    def set_latest(self, name: str, version: str) -> None:
        """Let the name alone mean a version."""
        self._put(f"{name}/{LATEST}", f"{version}\n".encode())

    def find(self, reference: str) -> tuple[str, str]:
        """The name and whole version that "name" or "name@3f2a" means. Raises UsageError."""
        name, at, beginning = reference.partition("@")
        check_dataset_name(name)
        if not at:
            version = self.latest(name)
            if version is None:
                raise self._unknown(name)
            if not _VERSION.fullmatch(version) or self.store.size(f"{name}/{version}/{MANIFEST}") is None:
                what, why = f"{self.store.url}/{name}/{LATEST} is damaged", f"there is no version {version[:20]!r}"
                raise DataError(what, why, f"aifx data ls {name}, and write the version that you want into that file")
            return name, version
        matching = [version for version in self.versions(name) if version.startswith(beginning)]
        if len(matching) != 1 or len(beginning) < 4:
            known = self.versions(name)
            if not known:
                raise self._unknown(name)
            why = f"{len(matching)} versions begin with {beginning!r}" if matching else did_you_mean(beginning, known)
            if len(beginning) < 4:
                why = "a version is named by 4 hexadecimal digits or more"
            raise UsageError(f"{reference!r} names no version in {self.store.url}", why, f"aifx data ls {name}")
        return name, matching[0]

    def _unknown(self, name: str) -> UsageError:
        names = self.names()
        if not names:
            hint = f"aifx data add {name} FILES --license SPDX"
            return UsageError(f"no data set {name!r} in {self.store.url}", "there is no data set yet", hint)
        return UsageError(f"no data set {name!r} in {self.store.url}", did_you_mean(name, names), "aifx data ls")

    def manifest(self, reference: str) -> Manifest:
        """Of the version that `reference` means. Raises UsageError, DataError if it is damaged."""
        return self._read_manifest(*self.find(reference))

    def open(self, reference: str) -> Version:
        """The version that `reference` means, copied into the cache if the root is remote.

        A copied file is compared with its SHA-256; `verification.check_files` compares those of a local root.
        Raises UsageError, DataError if its manifest is damaged, EnvironmentFault if the store fails.
        """
        name, version = self.find(reference)
        manifest = self._read_manifest(name, version)
        if self.local is not None:
            return Version(self.local / name / version, manifest)
        return self._fetched(self.store.below(f"{name}/{version}"), manifest)

    def _read_manifest(self, name: str, version: str) -> Manifest:
        url = f"{self.store.url}/{name}/{version}/{MANIFEST}"
        data = self.store.read(f"{name}/{version}/{MANIFEST}")
        if data is None:
            raise DataError(f"no {url}", "the version is not complete", f"aifx data ls {name}")
        return parse_manifest(data, url, version)

    def _fetched(self, store: Store, manifest: Manifest) -> Version:
        folder = cache_path("datasets") / manifest.sha256
        shards = manifest.files
        with (
            writable_folder(folder),
            report_progress(f"copying {store.url}", sum(shard.bytes for shard in shards), "bytes") as progress,
            ThreadPoolExecutor(4) as pool,
        ):
            list(pool.map(lambda shard: fetch_file(store, folder, shard, progress), shards))
            for name in (CROISSANT, PROFILE, SUMS, MANIFEST):
                if (data := store.read(name)) is not None:
                    _replace(folder / name, iter([data]))
        return Version(folder, manifest)

    def publish(self, version: Version) -> None:
        """Copy a version from a folder of this machine to a remote root; its manifest goes last."""
        target = self.store.below(f"{version.manifest.name}/{version.manifest.version}")
        shards = version.manifest.files
        with (
            report_progress(f"copying to {target.url}", sum(shard.bytes for shard in shards), "bytes") as progress,
            ThreadPoolExecutor(4) as pool,
        ):
            list(pool.map(lambda shard: send_file(version.path, target, shard, progress), shards))
        for name in (CROISSANT, PROFILE, SUMS, MANIFEST):
            target.write(name, iter([(version.path / name).read_bytes()]))

    def _put(self, name: str, data: bytes) -> None:
        if self.local is None:
            self.store.write(name, iter([data]))
        else:
            _replace(self.local / name, iter([data]))


def open_catalog(root: str, project: Project | None = None) -> Catalog:
    """The data sets at a URL or folder, relative to the project. Raises UsageError for a URL that cannot be opened."""
    if "://" in root:
        return Catalog(open_store(root))
    folder = (project.root if project else Path.cwd()) / Path(root).expanduser()
    return Catalog(open_store(str(folder)))


def parse_manifest(data: bytes, name: str, version: str | None = None) -> Manifest:
    """Raises DataError for one that is damaged, or of another version of the format than aifx reads."""
    hint = "restore it from a copy, or make the version again"
    try:
        document = parse_json(data)
        if isinstance(document, dict) and document.get("format", FORMAT) != FORMAT:
            why = f"its format is {document['format']}, and this aifx reads {FORMAT}"
            raise DataError(f"{name} cannot be read", why, "use the aifx that made it, or make the version again")
        manifest: Manifest = _MANIFEST.validate_python(document)
    except ValidationError as e:
        first = e.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(f"{name} is damaged", why, hint) from None
    except ValueError as e:
        raise DataError(f"{name} is damaged", str(e), hint) from None
    if manifest.sha256 != manifest.content_digest() or (version is not None and manifest.version != version):
        raise DataError(f"{name} is damaged", "its SHA-256 is not that of its content", hint)
    return manifest


def check_dataset_name(name: str) -> str:
    """`name`. Raises UsageError for what is not a plain folder name."""
    if not _can_name(name):
        why = "a data set's name is letters, digits, '.', '_' and '-', 100 at most, and begins with a letter or digit"
        raise UsageError(f"{name!r} cannot name a data set", why, "aifx data ls")
    return name


def _can_name(name: str) -> bool:
    return bool(DATASET_NAME.fullmatch(name)) and name != LATEST


def _problem(path: Path, shard: ShardFile, progress: Reporter | None = None) -> str:
    """The difference of a file from the manifest: "" if there is none."""
    try:
        size = os.path.getsize(path)
        if size != shard.bytes:
            return f"has {size:,} bytes instead of {shard.bytes:,}"
        if sha256_of_file(path, progress) != shard.sha256:
            return "has other bytes than were written"
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        return f"cannot be read: {e.strerror or e}"
    return ""


def fetch_file(store: Store, folder: Path, shard: ShardFile, progress: Reporter) -> None:
    """Copy a file of a store to a folder of this machine, unless it is there. Raises DataError if it is damaged."""
    path = folder / shard.name
    if _problem(path, shard) == "":
        progress.advance(shard.bytes)
        return
    _replace(path, _counted(store.blocks(shard.name), progress))
    if problem := _problem(path, shard):
        hint = "aifx data verify"
        raise DataError(f"{store.url}/{shard.name} is damaged", f"it {problem}", hint)


def send_file(source: Path, target: Store, shard: ShardFile, progress: Reporter) -> None:
    """Copy a file to a store, unless it is there. Raises EnvironmentFault if the store has other bytes then."""
    if target.size(shard.name) == shard.bytes and target.sha256(shard.name) == shard.sha256:
        progress.advance(shard.bytes)
        return
    with open(source / shard.name, "rb") as file:
        target.write(shard.name, _counted(iter(lambda: file.read(8 << 20), b""), progress))
    if target.sha256(shard.name) != shard.sha256:
        what = f"{target.url}/{shard.name} is not what was sent"
        raise EnvironmentFault(what, "its SHA-256 differs after it was written", "run the same command again")


def _counted(blocks: Iterator[bytes], progress: Reporter) -> Iterator[bytes]:
    for block in blocks:
        progress.advance(len(block))
        yield block


def _replace(path: Path, blocks: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for block in blocks:
            file.write(block)
