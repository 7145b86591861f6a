"""Immutable versions of data sets on disk: their manifests, their names, and where they are.

    datasets/<name>/latest              the version that `<name>` alone means
    datasets/<name>/<version>/
        manifest.json                   that of an artefact, of the kind "dataset": a folder without it is no version
        SHA256SUMS                      of every file, as sha256sum writes and checks it; made of the manifest
        croissant.json
        shards/*.parquet                the rows
        dropped/*.parquet               the rows that the step left out: row, step, rule, twin
        quarantine/*.parquet            what could not be read of the sources: source, line, reason, value
        profile.json
        tasks.json                  what each task of the step did: the next version of the same step refers to it

A file of `shards`, `dropped` or `quarantine` may be in the folder of another version of the data set instead, so that a
version with a few new rows does not write the others again. `notes.elsewhere` of its manifest names the place. That is
no part of the digest: the same rows make the same version, wherever they are.

A version is an artefact (`aifx.core.artifact`), and its name the beginning of the artefact's digest. Documents on disk
name versions with whole digests, "name@<64 digits>". The root may be a folder or any URL that fsspec knows. A version
of a remote root is copied into the cache, each file when it is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, overload

from pydantic import TypeAdapter

from aifx.core.artifact import (
    ELSEWHERE,
    MANIFEST,
    Artifact,
    DamagedArtifact,
    Files,
    ManifestFile,
    SealedFile,
    mark_checked,
    short,
)
from aifx.core.artifact_copies import fetch_artifact, stored_artifact
from aifx.core.code_digest import Code
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, DataError, EnvironmentFault, UsageError, nearest
from aifx.core.json_values import plain
from aifx.core.parsing import fault_in, parse_json
from aifx.core.stores import Store
from aifx.data.names import Kind

CROISSANT, PROFILE, TASKS, SUMS, LATEST, LINEAGE = (
    "croissant.json", "profile.json", "tasks.json", "SHA256SUMS", "latest", ".lineage"
)  # fmt: skip
COMING = "manifest.next.json"
"""The next manifest of a version whose files get another place, as long as its descriptions are being written again."""

SHARDS, DROPPED, QUARANTINE = "shards", "dropped", "quarantine"
INDEXES = "indexes"
"""The folder of a data set that holds the indexes of its versions, in a folder for each."""
TEXT_TYPES = ("string", "large_string")
"""Types of columns with texts, as manifests name them."""

CONTINUES = "continues"
"""The fact with the version whose decisions about earlier rows the step kept: a parent, but not one of its rows."""

REPLACES = "replaces"
"""The setting of an `add` of files alone, with the version that the name meant before."""

KIND, VERSION = "dataset", 3
"""The kind of a version as an artefact, and the version of its content."""
COMPACT = "compact"
"""The step that writes the rows of a version again, in whole shards of its own."""

UNKNOWN_LICENSE = "unknown"
_OWN_LICENSE = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")
SUMS_HEADER = "# SHA-256 of the lines below: "
T = TypeVar("T")


@dataclass(frozen=True)
class RowFile:
    """A file with something for each of some rows.

    Attributes:
        name: relative to the folder of its artefact, such as "shards/00000.parquet".
    """

    name: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class ShardFile(RowFile):
    """A Parquet file of a version.

    Attributes:
        holder: digest of the version of the same data set in whose folder the file is; "" for its own.
        stored_as: its name in the folder of the holder; "" in its own.
    """

    holder: str = ""
    stored_as: str = ""

    @property
    def path(self) -> str:
        """The path from the version's folder to the file."""
        return path_in(self.holder, self.stored_as) if self.holder else self.name

    def held_by(self, holder: str, name: str) -> ShardFile:
        """The same file as a version with another name for it refers to it.

        Args:
            holder: digest of the version that this file is from; another holder that it names already stays.
        """
        return replace(self, name=name, holder=self.holder or holder, stored_as=self.stored_as or self.name)


def path_in(holder: str, name: str) -> str:
    """The path from the folder of a version to a file of another version of the data set."""
    return f"../{short(holder)}/{name}"


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
    """The step that made a version: enough to run it again."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """What made a version, without its files.

    Attributes:
        reference: "name@<64 digits>".
        row_parents, made_by: see `Manifest`.
        tasks_sha256: of its tasks.json; "" if it has none.
    """

    reference: str
    row_parents: tuple[str, ...]
    step: StepRecord
    made_by: StepRecord
    code: Code
    tasks_sha256: str = ""


def origin_in(data: bytes) -> Origin:
    """The origin of the version whose manifest has these bytes, which are not compared with its digest.

    It is read in a tenth of the time that the whole manifest takes. Raises ValueError, KeyError, TypeError or
    AttributeError for what is no manifest of a version.
    """
    document = parse_json(data)
    content, notes = document["content"], document["notes"]
    step = StepRecord(content["step"]["name"], content["step"]["settings"])
    parents = _row_parents(content["parents"], content["facts"])
    code = Code(notes["code"]["sha256"], notes["code"]["libraries"])
    tasks = document["descriptions"].get(TASKS, {}).get("sha256", "")
    return Origin(f"{notes['name']}@{document['digest']}", parents, step, _made_by(step), code, tasks)


def _made_by(step: StepRecord) -> StepRecord:
    return StepRecord(**step.settings["of"]) if step.name == COMPACT else step


def _row_parents(parents: Iterable[str], facts: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(parent for parent in parents if parent != facts.get(CONTINUES))


@dataclass(frozen=True)
class Manifest:
    """A version as its `manifest.json` describes it (`VersionContent`, `VersionNotes`). It has no time and no path of
    a machine: the same rows, made by the same code, give the same bytes.

    Attributes:
        rows, bytes: of its shards, also of those in folders of other versions.
        sha256: the artefact's digest; its beginning is the version's name.
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
    code: Code = field(default_factory=lambda: Code("", {}))
    aifx: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    quarantine: tuple[ShardFile, ...] = ()
    sha256: str = ""

    @property
    def files(self) -> tuple[ShardFile, ...]:
        """All of its Parquet files."""
        return (*self.shards, *self.dropped, *self.quarantine)

    @property
    def made_by(self) -> StepRecord:
        """The step that made the rows: of a compacted version, the one that made what was compacted."""
        return _made_by(self.step)

    @property
    def version(self) -> str:
        return short(self.sha256)

    @property
    def reference(self) -> str:
        """ "name@version", for people, as the command line and `data.dataset` take it."""
        return f"{self.name}@{self.version}"

    @property
    def whole_reference(self) -> str:
        """ "name@<64 digits>", for documents on disk."""
        return f"{self.name}@{self.sha256}"

    @property
    def row_parents(self) -> tuple[str, ...]:
        """The parents that its rows come from: without the one whose decisions its step kept."""
        return _row_parents(self.parents, self.facts)

    @property
    def origin(self) -> Origin:
        return Origin(self.whole_reference, self.row_parents, self.step, self.made_by, self.code)

    @property
    def holders(self) -> tuple[str, ...]:
        """The digests of other versions of the data set in whose folders some of its files are."""
        return tuple(sorted({file.holder for file in self.files if file.holder}))

    @property
    def quarantined_rows(self) -> int:
        """Rows of its sources that could not be read."""
        return sum(source.quarantined for source in self.sources)

    @property
    def licenses(self) -> tuple[str, ...]:
        return tuple(sorted({source.license for source in self.sources}))

    def artifact(self, descriptions: Files | None = None) -> Artifact:
        """The artefact. Its digest does not depend on the descriptions."""
        content = plain(self)
        for key in ("name", "code", "aifx", "rows", "bytes", "sha256"):
            del content[key]
        for part in (SHARDS, DROPPED, QUARANTINE):
            content[part] = [{"name": file["name"], "rows": file["rows"]} for file in content[part]]
        files = {file.name: SealedFile(file.bytes, file.sha256) for file in self.files}
        elsewhere = {file.name: f"{file.holder}/{file.stored_as}" for file in self.files if file.holder}
        notes = {"name": self.name, "code": plain(self.code), "aifx": self.aifx, ELSEWHERE: elsewhere}
        return Artifact(KIND, VERSION, content, files, descriptions or {}, notes)


class StoredFile(TypedDict):
    """A Parquet file. Its size and SHA-256 are in `files`."""

    name: str
    rows: int


class VersionContent(TypedDict):
    """The content of `manifest.json`.

    Attributes:
        columns: Arrow type by column.
        shards: the rows, in order.
        dropped: the rows that the step left out.
        dropped_by: number of dropped rows by rule.
        parents: versions that this one was made from, as "name@<64 digits>".
        facts: that the step found, such as a threshold.
        quarantine: what could not be read of the sources.
    """

    kind: Kind
    columns: dict[str, str]
    shards: list[StoredFile]
    dropped: list[StoredFile]
    dropped_by: dict[str, int]
    parents: list[str]
    step: StepRecord
    sources: list[Source]
    facts: dict[str, Any]
    quarantine: list[StoredFile]


class VersionNotes(TypedDict):
    """The parts of `manifest.json` outside the digest.

    Attributes:
        name: of the data set.
        code: of the step when it made the version first. Other code may have made the same rows since.
        aifx: the version of aifx that made it first.
        elsewhere: place of each file that is in the folder of another version of the data set: "<64 digits>/<name>".
    """

    name: str
    code: Code
    aifx: str
    elsewhere: dict[str, str]


class VersionFile(ManifestFile):
    """manifest.json of a version."""

    kind: Literal["dataset"]
    version: Literal[3]
    content: VersionContent
    notes: VersionNotes


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Version:
    """A version in a folder on this machine.

    Attributes:
        path: the folder.
        folders: those of the versions that hold some of its files, by digest.
        remote: the folder of the data set in a remote root. A file is copied from there when its path is asked for:
            `shards[3]` copies one, a loop over `shards` all. Then these raise DataError for a file that is damaged
            there, EnvironmentFault if the store fails.
    """

    path: Path
    manifest: Manifest
    folders: Mapping[str, Path] = field(default_factory=dict)
    remote: Store | None = None

    @property
    def reference(self) -> str:
        return self.manifest.reference

    @property
    def shards(self) -> Sequence[Path]:
        """The Parquet files with its rows, in order."""
        return _Paths(self, self.manifest.shards)

    @property
    def dropped(self) -> Sequence[Path]:
        return _Paths(self, self.manifest.dropped)

    @property
    def quarantine(self) -> Sequence[Path]:
        return _Paths(self, self.manifest.quarantine)

    def path_of(self, file: ShardFile) -> Path:
        """One of its files, in its own folder or in that of another version."""
        folder, name = (self.folders[file.holder], file.stored_as) if file.holder else (self.path, file.name)
        if self.remote is not None:
            self._fetch(file.holder, folder, {name: SealedFile(file.bytes, file.sha256)})
        return folder / name

    def fetch(self, files: Sequence[ShardFile]) -> None:
        """Copy those of its files that are not there, many at a time, if the root is remote."""
        for holder in dict.fromkeys(file.holder for file in files) if self.remote is not None else ():
            folder = self.folders[holder] if holder else self.path
            held = {file.stored_as or file.name: file for file in files if file.holder == holder}
            absent = {
                name: SealedFile(one.bytes, one.sha256) for name, one in held.items() if not (folder / name).exists()
            }
            if len(absent) > 1:
                self._fetch(holder, folder, absent)
                for name, sealed in absent.items():  # so that `path_of` need not compare it again
                    mark_checked(folder, Artifact(KIND, VERSION, {}, {name: sealed}), [name])

    def _fetch(self, holder: str, folder: Path, files: Files) -> None:
        assert self.remote is not None
        try:
            store = self.remote.below(short(holder or self.manifest.sha256))
            fetch_artifact(store, Artifact(KIND, VERSION, {}, files), folder, is_whole=False)
        except DamagedArtifact as e:
            raise DataError(e.what, e.why, "aifx data verify") from e


class _Paths(Sequence[Path]):
    """Paths of files of a version."""

    def __init__(self, version: Version, files: Sequence[ShardFile]) -> None:
        self._version, self._files = version, files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Path]: ...
    def __getitem__(self, place: int | slice) -> Path | Sequence[Path]:
        if isinstance(place, slice):
            return _Paths(self._version, self._files[place])
        return self._version.path_of(self._files[place])

    def __iter__(self) -> Iterator[Path]:
        self._version.fetch(self._files)
        return map(self._version.path_of, self._files)


def read_version(store: Store, version: str) -> tuple[Artifact, Manifest] | None:
    """The version in a store; None if it has no manifest.

    Args:
        version: the name of its folder.

    Raises as `read_typed`.
    """

    def typed(artifact: Artifact) -> Manifest:
        manifest = _manifest_of(artifact)
        if manifest.version != version:
            raise ValueError(f"its digest {artifact.digest} does not begin with the folder's name")
        return manifest

    hint = "restore it from a copy, or make the version again in another root"
    return read_typed(store, KIND, VERSION, typed, hint)


def read_typed(
    store: Store, kind: str, version: int, typed: Callable[[Artifact], T], hint: str
) -> tuple[Artifact, T] | None:
    """The artefact in a store, of which only the manifest is read, and what `typed` makes of it; None if it has none.

    Args:
        typed: raises ValueError, KeyError or TypeError for content that no such artefact has.

    Raises DataError, with `hint`, for a manifest that is damaged, of another kind or format, or no regular file;
    EnvironmentFault if the store fails.
    """
    try:
        artifact = stored_artifact(store, kind, version)
        return None if artifact is None else (artifact, typed(artifact))
    except EnvironmentFault:
        raise
    except AifxError as e:
        raise DataError(e.what, e.why, e.hint or hint) from e
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{store.url} is damaged", f"{MANIFEST}: {fault_in(e)}", hint) from e


def _manifest_of(artifact: Artifact) -> Manifest:
    """The version that an artefact holds. Raises ValueError, KeyError or TypeError for content of anything else."""
    fields = {**artifact.content, **artifact.notes, "sha256": artifact.digest}
    del fields[ELSEWHERE]
    for part in (SHARDS, DROPPED, QUARANTINE):
        fields[part] = [_stored_file(artifact, file) for file in fields[part]]
    for number in ("rows", "bytes"):
        fields[number] = sum(shard[number] for shard in fields[SHARDS])
    return _MANIFEST.validate_python(fields)


def _stored_file(artifact: Artifact, file: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `ShardFile`."""
    name = file["name"]
    holder, stored_as = artifact.elsewhere.get(name, ("", ""))
    return {**file, **asdict(artifact.files[name]), "holder": holder, "stored_as": stored_as}


def sums_of(artifact: Artifact) -> bytes:
    """The content of a version's SHA256SUMS."""
    elsewhere = {name: path_in(*place) for name, place in artifact.elsewhere.items()}
    files = {elsewhere.get(name, name): file.sha256 for name, file in artifact.every_file.items()}
    return sums_text({**files, MANIFEST: sha256_of(artifact.encode())}).encode()


def sums_text(digests: Mapping[str, str]) -> str:
    """Lines as sha256sum writes and checks them, below the SHA-256 of all of them."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"{SUMS_HEADER}{sha256_of(lines)}\n{lines}"


def check_license(expression: str) -> str:
    """The SPDX expression of a licence in its normal form, or "unknown". Raises UsageError.

    `LicenseRef-` and a name mean a licence that SPDX does not list:
    https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/.
    """
    if expression.strip().lower() == UNKNOWN_LICENSE:
        return UNKNOWN_LICENSE
    from license_expression import ExpressionError, Licensing, get_spdx_licensing

    spdx: Licensing = get_spdx_licensing()
    what = f"--license {expression!r} is not an SPDX expression"
    try:
        parsed = spdx.parse(expression)
    except ExpressionError as e:
        raise UsageError(what, str(e), "--license MIT") from None
    if parsed is None:
        raise UsageError(what, "it is empty", "--license MIT")
    unknown = [key for key in spdx.unknown_license_keys(parsed) if not _OWN_LICENSE.fullmatch(key)]
    if unknown:
        near = nearest(unknown[0], [key for key in spdx.known_symbols if not key.startswith("LicenseRef-")])
        meant = expression.replace(unknown[0], near) if near else UNKNOWN_LICENSE
        quoted = f"'{meant}'" if " " in meant else meant
        raise UsageError(what, f"SPDX lists no licence {unknown[0]!r}", f"--license {quoted}")
    return str(parsed)
