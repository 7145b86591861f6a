"""Indexes of versions on disk.

    datasets/<name>/indexes/<version>/latest          the index that a search takes
    datasets/<name>/indexes/<version>/<index>/
        manifest.json                                 written last: a folder without it is no index
        index.faiss                                   the vectors; the id of each is its row's number in the version

An index's name is the beginning of a SHA-256 over its version and all that its vectors and its search depend on.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of, sha256_of_file, sha256_of_values
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.files import replace_file
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json, plain
from aifx.core.os_errors import first_line
from aifx.core.parsing import parse_json
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.versions import INDEXES, LATEST, MANIFEST, Catalog, Manifest, ShardFile, fetch_file, send_file
from aifx.search.embedders import EmbedderRecord
from aifx.search.hashed_ngrams import HashedNgrams
from aifx.search.kinds import IndexKind, Recall

INDEX_FILE = "index.faiss"
FORMAT = 1
NAME_DIGITS = 12
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

    def name(self, version_sha256: str) -> str:
        """The name of the index of a version with these settings."""
        chosen: list[Any] = [
            self.column,
            self.embedder.kind,
            self.embedder.dims,
            plain(self.embedder.settings),
            self.kind,
        ]
        if self.kind != "exact":
            chosen += [self.effort, self.least_recall]
        return sha256_of(encode_json([FORMAT, version_sha256, *chosen]))[:NAME_DIGITS]


@dataclass(frozen=True)
class IndexManifest:
    """The content of an index's `manifest.json`.

    Attributes:
        reference: the version, "name@version".
        version_sha256: of the version's manifest.
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
    file: ShardFile
    skipped: int
    effort: int | None
    recall: Recall | None
    faiss: str
    format: int = FORMAT

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
            if chosen.name(self.version_sha256) != self.name:
                parts += ["--effort", str(self.effort)]
        return " ".join(parts)

    @property
    def possible_names(self) -> set[str]:
        """The names that `IndexSettings` gives it, for an effort that was given or found."""
        least = self.recall.least if self.recall is not None else 0.0
        settings = IndexSettings(self.column, self.embedder, self.kind, self.effort, least)
        return {one.name(self.version_sha256) for one in (settings, replace(settings, effort=None))}


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
        if not _is_whole(path, self.manifest.file):
            raise DataError(what, "its SHA-256 is not that of the manifest", hint)
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
    found = [_read_manifest(catalog, version, name) for name in names]
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
    manifest = _read_manifest(catalog, version, name)
    if catalog.local is not None:
        return Index(catalog.local / _folder(version) / name, manifest)
    store = catalog.store.below(f"{_folder(version)}/{name}")
    folder = cache_path("datasets") / version.sha256 / INDEXES / manifest.file.sha256
    with writable_folder(folder), report_progress(f"copying {store.url}", manifest.file.bytes, "bytes") as progress:
        fetch_file(store, folder, manifest.file, progress)
    return Index(folder, manifest)


def _read_manifest(catalog: Catalog, version: Manifest, name: str) -> IndexManifest:
    store = catalog.store.below(f"{_folder(version)}/{name}")
    url, hint = f"{store.url}/{MANIFEST}", f"aifx data index {version.reference} --rebuild"
    try:
        document = parse_json(store.read(MANIFEST) or b"")
        if isinstance(document, dict) and document.get("format") != FORMAT:
            why = f"its format is {document.get('format')}, and this aifx reads {FORMAT}"
            raise DataError(f"{url} cannot be read", why, hint)
        manifest: IndexManifest = _MANIFEST.validate_python(document)
    except ValidationError as e:
        raise DataError(
            f"{url} is damaged", f"{'.'.join(map(str, e.errors()[0]['loc']))}: {e.errors()[0]['msg']}", hint
        ) from None
    except ValueError as e:
        raise DataError(f"{url} is damaged", str(e), hint) from None
    if manifest.version_sha256 != version.sha256:
        why = f"it is of {manifest.reference}, and {version.reference} has other rows"
        raise DataError(f"{store.url} is not an index of {version.reference}", why, hint)
    if name not in manifest.possible_names:
        raise DataError(f"{url} is damaged", "the index's name is not that of its settings", hint)
    return manifest


def publish_index(catalog: Catalog, version: Manifest, out: Path, manifest: IndexManifest) -> Index:
    """Give the folder that holds the index its name, or copy it to a remote root; a search takes it if accepted."""
    target = f"{_folder(version)}/{manifest.name}"
    document = encode(encode_json(plain(manifest), indent=2, ensure_ascii=False) + "\n")
    if catalog.local is None:
        store = catalog.store.below(target)
        with report_progress(f"copying to {store.url}", manifest.file.bytes, "bytes") as progress:
            send_file(out, store, manifest.file, progress)
        store.write(MANIFEST, iter([document]))
    else:
        replace_file(out / MANIFEST, document)
        shutil.rmtree(catalog.local / target, ignore_errors=True)
        os.rename(out, catalog.local / target)
    if manifest.is_accepted:
        set_latest_index(catalog, version, manifest.name)
    return open_index(catalog, version, manifest.name)


def set_latest_index(catalog: Catalog, version: Manifest, name: str) -> None:
    """Let searches of a version take this index."""
    data = f"{name}\n".encode()
    if catalog.local is None:
        catalog.store.write(f"{_folder(version)}/{LATEST}", iter([data]))
    else:
        replace_file(catalog.local / _folder(version) / LATEST, data)


def indexes_folder(catalog: Catalog, version: Manifest) -> Path:
    """The folder on this machine where indexes of a version are made."""
    return (catalog.local or cache_path("datasets") / "work") / _folder(version)


def _folder(version: Manifest) -> str:
    return f"{version.name}/{INDEXES}/{version.version}"


def _is_whole(path: Path, file: ShardFile) -> bool:
    """Whether the index has the bytes that were written. Its SHA-256 is compared once for each state of the file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if found.st_size != file.bytes:
        return False
    seen = cache_path("verified") / sha256_of_values(str(path), file.sha256, found.st_ino, found.st_mtime_ns)
    if seen.exists():
        return True
    with report_progress(f"verifying {path.name}", file.bytes, "bytes") as progress:
        if sha256_of_file(path, progress) != file.sha256:
            return False
    with suppress(OSError), writable_folder(seen.parent):
        seen.touch()
    return True
