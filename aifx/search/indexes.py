"""Indexes of versions on disk.

    datasets/<name>/indexes/<version>/latest          the index that a search takes
    datasets/<name>/indexes/<version>/<index>/
        manifest.json                                 that of an artefact, of the kind "index"
        index.faiss                                   the vectors; the id of each is its row's number in the version

An index's name is the beginning of a SHA-256 over its version and all that its vectors and its search depend on. Its
artefact's digest also covers the vectors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypedDict

from pydantic import TypeAdapter

from aifx.core.artifact import (
    MANIFEST,
    Artifact,
    DamagedArtifact,
    ManifestFile,
    SealedFile,
    check_once,
    publish,
    seal,
    short,
    short_reference,
)
from aifx.core.artifact_copies import copy_artifact
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.files import remove_folder
from aifx.core.json_values import encode_json, plain
from aifx.core.os_errors import first_line
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.core.stores import open_store
from aifx.data.versions.catalog import Catalog, fetch
from aifx.data.versions.manifest import INDEXES, LATEST, Manifest, RowFile, read_typed
from aifx.search.embedders import EmbedderRecord, HashedNgrams
from aifx.search.kinds import IndexKind, Recall

INDEX_FILE = "index.faiss"
KIND, VERSION = "index", 1
"""The kind of an index as an artefact, and the version of its content."""

_NAME = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class IndexSettings:
    """The options of `aifx data index`.

    Attributes:
        column: whose texts are embedded.
        effort: how much of an approximate index a search looks at; None for as much as `least_recall` needs.
    """

    column: str
    embedder: EmbedderRecord
    kind: IndexKind = "exact"
    effort: int | None = None
    least_recall: float = 0.95

    def digest(self, version_sha256: str) -> str:
        """SHA-256 of the version and of all that the index depends on; its beginning is the index's name."""
        chosen: list[Any] = [
            self.column,
            self.embedder.kind,
            self.embedder.dims,
            plain(self.embedder.settings),
            self.kind,
        ]
        if self.kind != "exact":
            chosen += [self.effort, self.least_recall]
        return sha256_of(encode_json([VERSION, version_sha256, *chosen]))


@dataclass(frozen=True)
class IndexManifest:
    """An index as its `manifest.json` describes it.

    Attributes:
        reference: the version, "name@version".
        version_sha256: the version's digest.
        file: the index; its rows are the vectors in it.
        skipped: rows without a text, or whose text has no content.
        effort: how much of it a search looks at; None if it is exact.
        recall: of an approximate index.
        faiss: version of the library that wrote it.
    """

    name: str
    reference: str
    version_sha256: str
    column: str
    embedder: EmbedderRecord
    kind: IndexKind
    file: RowFile
    skipped: int
    effort: int | None
    recall: Recall | None
    faiss: str
    format: int = VERSION

    @property
    def is_accepted(self) -> bool:
        """Whether its recall is enough."""
        return self.recall is None or self.recall.is_enough

    def command(self) -> str:
        """The command that makes this index."""
        parts = ["aifx data index", self.reference]
        if self.column != "text":
            parts += ["--column", quote(self.column)]
        if self.embedder.kind != "ngrams":
            parts += ["--embedder", quote(self.embedder.name)]
        elif self.embedder.dims != HashedNgrams.dims:
            parts += ["--dims", str(self.embedder.dims)]
        if self.recall is not None:
            parts += ["--kind", self.kind, "--min-recall", f"{self.recall.least:g}"]
            chosen = IndexSettings(self.column, self.embedder, self.kind, None, self.recall.least)
            if short(chosen.digest(self.version_sha256)) != self.name:
                parts += ["--effort", str(self.effort)]
        return " ".join(parts)

    @property
    def settings_digests(self) -> set[str]:
        """Digests of the settings that it can have been made with: its effort was given or found."""
        least = self.recall.least if self.recall is not None else 0.0
        settings = IndexSettings(self.column, self.embedder, self.kind, self.effort, least)
        return {one.digest(self.version_sha256) for one in (settings, replace(settings, effort=None))}

    def artifact(self) -> Artifact:
        """The artefact. The folder has the name, and `files` the size and SHA-256."""
        content = plain(self)
        for key in ("name", "reference", "version_sha256", "file", "format"):
            del content[key]
        content["version"] = f"{self.reference.partition('@')[0]}@{self.version_sha256}"
        content["vectors"] = self.file.rows
        return Artifact(KIND, VERSION, content, {self.file.name: SealedFile(self.file.bytes, self.file.sha256)})


class IndexContent(TypedDict):
    """The content of an index in its `manifest.json`.

    Attributes:
        skipped: rows without a text, or whose text has no content.
        effort: how much of it a search looks at; null if it is exact.
        recall: of an approximate index.
        faiss: version of the library that wrote it.
        version: that it is of, "name@<64 digits>".
        vectors: in index.faiss; the id of each is its row's number in the version.
    """

    column: str
    embedder: EmbedderRecord
    kind: IndexKind
    skipped: int
    effort: int | None
    recall: Recall | None
    faiss: str
    version: str
    vectors: int


class IndexFile(ManifestFile):
    """manifest.json of an index."""

    kind: Literal["index"]
    version: Literal[1]
    content: IndexContent
    notes: dict[str, str]


_MANIFEST = TypeAdapter(IndexManifest)


@dataclass(frozen=True)
class Index:
    """An index in a folder on this machine."""

    path: Path
    manifest: IndexManifest

    def read(self) -> Any:
        """The faiss index, mapped into memory. Raises DataError if the file is damaged."""
        import faiss

        from aifx.search.kinds import set_effort

        hint = f"{self.manifest.command()} --rebuild"
        path = self.path / INDEX_FILE
        what = f"{path} is damaged"
        try:
            with report_progress(f"verifying {path.name}", self.manifest.file.bytes, "bytes") as progress:
                check_once(self.path, self.manifest.artifact(), [INDEX_FILE], progress)
        except DamagedArtifact as e:
            raise DataError(what, e.why, hint) from e
        try:
            found = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as e:
            raise DataError(what, first_line(e), hint) from None
        shape = (found.ntotal, found.d)
        if not isinstance(found, faiss.IndexIDMap2) or shape != (self.manifest.file.rows, self.manifest.embedder.dims):
            raise DataError(what, f"it has {shape[0]:,} vectors of {shape[1]} numbers", hint)
        if self.manifest.effort is not None:
            set_effort(found, self.manifest.effort)
        return found


def indexes_of(catalog: Catalog, manifest: Manifest) -> list[str]:
    """The names of the complete indexes of a version."""
    folder = _folder(manifest)
    return sorted(
        name
        for name in catalog.store.folders(folder)
        if _NAME.fullmatch(name) and catalog.store.size(f"{folder}/{name}/{MANIFEST}") is not None
    )


def find_index(catalog: Catalog, manifest: Manifest, beginning: str | None = None) -> Index:
    """The index of a version whose name has this beginning; by default the one that was made last.

    Raises UsageError if there is none, DataError if it is damaged.
    """
    names = indexes_of(catalog, manifest)
    if not names:
        indexed = catalog.store.folders(f"{manifest.name}/{INDEXES}")
        others = [one for one in catalog.versions(manifest.name) if one in indexed and one != manifest.version]
        theirs = f"an index belongs to one version, and {', '.join(others)} has other rows"
        why = theirs if others else "an index belongs to one version, and none was made of this one"
        raise UsageError(f"{manifest.reference} has no index", why, f"aifx data index {manifest.reference}")
    if beginning is None:
        latest = (catalog.store.read(f"{_folder(manifest)}/{LATEST}") or b"").decode(errors="replace").strip()
        beginning = latest if latest in names else _first_accepted(catalog, manifest, names)
    matching = [name for name in names if name.startswith(beginning)]
    if len(matching) != 1:
        why = did_you_mean(beginning, names)
        raise UsageError(f"--index {beginning} names no index of {manifest.reference}", why, f"--index {names[0]}")
    return open_index(catalog, manifest, matching[0])


def _first_accepted(catalog: Catalog, version: Manifest, names: Sequence[str]) -> str:
    """The first index whose recall is enough. Raises UsageError if there is none."""
    found = [_read_manifest(catalog, version, name)[1] for name in names]
    accepted = [one.name for one in found if one.is_accepted]
    if accepted:
        return accepted[0]
    recalls = [f"{one.name} has recall {one.recall.share:.2%}, at least {one.recall.least:.2%} was asked for"
               for one in found if one.recall is not None]  # fmt: skip
    what = f"no index of {version.reference} has the recall that it was made for"
    hint = f"--index {names[0]} takes it all the same; aifx data index {version.reference} makes an exact one"
    raise UsageError(what, "; ".join(recalls), hint)


def open_index(catalog: Catalog, version: Manifest, name: str) -> Index:
    """An index of a version by its whole name, copied into the cache if the root is remote.

    Raises DataError if it is damaged or of other rows.
    """
    artifact, manifest = _read_manifest(catalog, version, name)
    if catalog.local is not None:
        return Index(catalog.local / _folder(version) / name, manifest)
    folder = cache_path("datasets") / version.sha256 / INDEXES / artifact.digest
    return Index(fetch(catalog.store.below(f"{_folder(version)}/{name}"), artifact, folder), manifest)


def _read_manifest(catalog: Catalog, version: Manifest, name: str) -> tuple[Artifact, IndexManifest]:
    store = catalog.store.below(f"{_folder(version)}/{name}")
    hint = f"aifx data index {version.reference} --rebuild"

    def typed(artifact: Artifact) -> IndexManifest:
        fields = dict(artifact.content)
        whole = fields.pop("version")
        fields |= {"name": name, "reference": short_reference(whole), "version_sha256": whole.partition("@")[2]}
        fields["file"] = {"name": INDEX_FILE, "rows": fields.pop("vectors"), **asdict(artifact.files[INDEX_FILE])}
        manifest: IndexManifest = _MANIFEST.validate_python(fields)
        if manifest.version_sha256 == version.sha256 and name not in map(short, manifest.settings_digests):
            raise ValueError("the index's name is not that of its settings")
        return manifest

    found = read_typed(store, KIND, VERSION, typed, hint)
    if found is None:
        raise DataError(f"no {store.url}/{MANIFEST}", "the index is not complete", hint)
    artifact, manifest = found
    if manifest.version_sha256 != version.sha256:
        why = f"it is of {manifest.reference}, and {version.reference} has other rows"
        raise DataError(f"{store.url} is not an index of {version.reference}", why, hint)
    return artifact, manifest


def publish_index(catalog: Catalog, version: Manifest, out: Path, manifest: IndexManifest) -> Index:
    """Give the folder that holds the index its name, or copy it to a remote root; a search takes it if accepted."""
    target = f"{_folder(version)}/{manifest.name}"
    seal(out, manifest.artifact())
    if catalog.local is None:
        copy_artifact(open_store(str(out)), manifest.artifact(), catalog.store.below(target))
    else:
        place = catalog.local / target
        with suppress(FileNotFoundError):
            remove_folder(place, str(place))
        publish(out, place)
    if manifest.is_accepted:
        set_latest_index(catalog, version, manifest.name)
    return open_index(catalog, version, manifest.name)


def set_latest_index(catalog: Catalog, version: Manifest, name: str) -> None:
    """Let searches of a version take this index."""
    catalog.store.write(f"{_folder(version)}/{LATEST}", iter([f"{name}\n".encode()]))


def indexes_folder(catalog: Catalog, version: Manifest) -> Path:
    """The folder on this machine where indexes of a version are made."""
    return (catalog.local or cache_path("datasets") / "work") / _folder(version)


def _folder(version: Manifest) -> str:
    return f"{version.name}/{INDEXES}/{version.version}"
