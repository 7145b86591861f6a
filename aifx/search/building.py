"""Building an index: the vectors of a version a few thousand rows at a time, so that a restart embeds the rest.

It works in `indexes/<version>/.work-<digest of the settings>/`: `<shard>-<piece>.f32` has the vectors of a piece
(`write_checked`), and `out` becomes the index. Each file appears by rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aifx.core.artifact import seal_files, short
from aifx.core.calls import call_each
from aifx.core.errors import DataError, EnvironmentFault, ExitCode, UsageError, did_you_mean
from aifx.core.files import holding
from aifx.core.json_files import readable_bytes
from aifx.core.json_values import plain
from aifx.core.os_errors import naming
from aifx.core.plurals import counted
from aifx.core.progress import Reporter, report_progress
from aifx.core.results import Result
from aifx.curation.step import Limits
from aifx.curation.work_folders import WORK, holding_work
from aifx.data.readers.parquet import open_parquet
from aifx.data.row_cache import read_checked, write_checked
from aifx.data.versions.catalog import Catalog, check_own_rows, check_shards
from aifx.data.versions.lineage import record_index
from aifx.data.versions.manifest import TEXT_TYPES, RowFile, Version
from aifx.data.versions.shards import return_memory
from aifx.search.embedders import F32, Embedder
from aifx.search.indexes import (
    INDEX_FILE,
    Index,
    IndexManifest,
    IndexSettings,
    indexes_folder,
    indexes_of,
    open_index,
    publish_index,
    set_latest_index,
)
from aifx.search.kinds import LEAST_ROWS, MadeIndex, make_index

PIECE_ROWS = 1 << 10
OUT = "out"


@dataclass(frozen=True)
class BuiltIndex(Result):
    """The document of `aifx data index --json`.

    Attributes:
        index: its manifest.
        size_bytes: of the index.
        is_new: False if it was there already.
        is_accepted: False if its recall is too small; then the command exits 1, and searches use the index before.
    """

    index: IndexManifest
    size_bytes: int
    is_new: bool
    is_accepted: bool

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_accepted else ExitCode.VERDICT


def build_index(
    version: Version,
    settings: IndexSettings,
    embedder: Embedder,
    catalog: Catalog,
    limits: Limits,
    *,
    rebuild: bool = False,
) -> BuiltIndex:
    """Make the index of a version with these settings, or find it. Searches use it if its recall is enough.

    Args:
        rebuild: make it even if it is there.

    Raises UsageError for a column that has no texts, DataError for a damaged shard, EnvironmentFault if the vectors
    need more memory than allowed.
    """
    _check(version, settings, limits)
    digest = settings.digest(version.manifest.sha256)
    name = short(digest)
    folder = indexes_folder(catalog, version.manifest)
    with holding(folder, f"version {version.reference}", "makes an index of it"):
        known = indexes_of(catalog, version.manifest)
        there = open_index(catalog, version.manifest, name) if name in known and not rebuild else None
        if there is not None and digest in there.manifest.settings_digests:
            found, is_new = there, False
            if found.manifest.is_accepted:
                set_latest_index(catalog, version.manifest, name)
        else:
            work = folder / f"{WORK}{digest}"
            check_shards(version)
            with holding_work(work):
                embed_shards(version, settings.column, embedder, work, limits)
                found, is_new = _publish(version, name, settings, catalog, work, limits), True
            shutil.rmtree(work, ignore_errors=True)
        record_index(catalog, version.manifest, name, plain(settings))
    return BuiltIndex(found.manifest, found.manifest.file.bytes, is_new, found.manifest.is_accepted)


def check_column(version: Version, column: str) -> None:
    """Raise UsageError for a column that does not exist or has no texts."""
    columns = version.manifest.columns
    texts = [name for name, kind in columns.items() if kind in TEXT_TYPES and not name.startswith("_")]
    hint = f"--column {texts[0]}" if texts else "aifx data ls"
    if column not in columns:
        raise UsageError(f"{version.reference} has no column {column!r}", did_you_mean(column, columns), hint)
    if columns[column] not in TEXT_TYPES:
        why = f"it is of type {columns[column]}, and texts are embedded"
        raise UsageError(f"column {column!r} of {version.reference} has no texts", why, hint)


def _check(version: Version, settings: IndexSettings, limits: Limits) -> None:
    check_own_rows(version.manifest, "aifx data index")
    check_column(version, settings.column)
    rows = version.manifest.rows
    if settings.kind != "exact" and rows < LEAST_ROWS:
        exact = f"an exact search of {counted(rows, 'row')} takes less than a millisecond"
        why = f"{exact}, and an approximate index needs {LEAST_ROWS}"
        raise UsageError(f"--kind {settings.kind} is for more rows", why, "--kind exact")
    # An approximate index copies the vectors without those that its recall is measured with.
    needed = rows * 4 * settings.embedder.dims * (1 if settings.kind == "exact" else 2)
    if needed > limits.memory_bytes:
        why = f"{counted(rows, 'vector')} of {settings.embedder.dims} numbers need {readable_bytes(needed)}"
        raise EnvironmentFault("the index does not fit into --memory", why, f"--memory {needed // 10**9 + 1}GB")


def _publish(
    version: Version,
    name: str,
    settings: IndexSettings,
    catalog: Catalog,
    work: Path,
    limits: Limits,
) -> Index:
    """The index of the vectors in `work`."""
    import faiss

    vectors, ids = join_vectors(version, work, settings.embedder.dims)
    if not len(ids):
        why = f"column {settings.column!r} has no text with content in {counted(version.manifest.rows, 'row')}"
        raise UsageError(f"{version.reference} has nothing to embed", why, f"aifx data profile {version.reference}")
    with report_progress(f"indexing {counted(len(ids), 'vector')}", None, "vectors"):
        made = make_index(settings.kind, vectors, ids, limits.workers, settings.least_recall, settings.effort)
    out = work / OUT
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    manifest = IndexManifest(
        name=name,
        reference=version.reference,
        version_sha256=version.manifest.sha256,
        column=settings.column,
        embedder=settings.embedder,
        kind=settings.kind,
        file=_write(made, out, len(ids)),
        skipped=version.manifest.rows - len(ids),
        effort=made.effort,
        recall=made.recall,
        faiss=faiss.__version__,
    )
    return publish_index(catalog, version.manifest, out, manifest)


def _write(made: MadeIndex, out: Path, rows: int) -> RowFile:
    import faiss

    path = out / INDEX_FILE
    # To a path, faiss writes without a check that the last bytes reach the disk.
    with naming(path), open(path, "wb") as file:
        faiss.write_index(made.index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        file.flush()
    (sealed,) = seal_files(out, [path]).values()
    return RowFile(INDEX_FILE, sealed.sha256, rows, sealed.bytes)


def embed_shards(version: Version, column: str, embedder: Embedder, work: Path, limits: Limits) -> None:
    shards = list(enumerate(version.shards))
    sizes = [shard.bytes for shard in version.manifest.shards]
    with report_progress(f"embedding {version.reference}", sum(sizes), "bytes") as progress:
        if not embedder.uses_processes or limits.workers == 1 or len(shards) == 1:
            for number, path in shards:
                _embed_shard(column, embedder, work, (number, path), progress, sizes[number])
            return
        for number, _ in call_each(
            partial(_embed_shard, column, embedder, work), shards, limits.workers, begin=return_memory
        ):
            progress.advance(sizes[number])


def _embed_shard(
    column: str,
    embedder: Embedder,
    work: Path,
    shard: tuple[int, Path],
    progress: Reporter | None = None,
    size: int = 0,
) -> None:
    """Write the vectors of the pieces of a shard that are missing."""
    number, path = shard
    with open_parquet(path, str(path)) as file:
        rows = max(file.metadata.num_rows, 1)
        for piece, batch in enumerate(file.iter_batches(PIECE_ROWS, columns=[column], use_threads=False)):
            target = _piece(work, number, piece)
            if not _is_whole(target, len(batch), embedder.record.dims):
                _write_piece(target, embedder.embed(batch.column(0)), f"{path}, row {piece * PIECE_ROWS + 1:,} and on")
            if progress is not None:
                progress.advance(size * len(batch) // rows)


def _piece(work: Path, shard: int, piece: int) -> Path:
    return work / f"{shard:05d}-{piece:05d}.f32"


def _write_piece(path: Path, vectors: F32, place: str) -> None:
    """Write the vectors of a piece. Raises DataError for vectors that no search could compare."""
    if not np.isfinite(vectors).all():
        what = f"the vectors of {place} are not finite"
        raise DataError(what, "the embedder computes infinities or NaN", "--embedder ngrams, or another model")
    write_checked(path, vectors.tobytes())


def _is_whole(path: Path, rows: int, dims: int) -> bool:
    """Whether a call before has written the vectors of a piece, and nothing has damaged them."""
    try:
        return read_checked(path).nbytes == rows * dims * 4
    except (FileNotFoundError, ValueError):
        return False


def _pieces(version: Version, work: Path, dims: int) -> Iterator[tuple[int, Any]]:
    """The number of each piece's first row in the version, and its vectors, mapped."""
    first = 0
    for number, shard in enumerate(version.manifest.shards):
        for piece, begin in enumerate(range(0, shard.rows, PIECE_ROWS)):
            rows = min(PIECE_ROWS, shard.rows - begin)
            yield first + begin, np.memmap(_piece(work, number, piece), np.float32, "r", shape=(rows, dims))
        first += shard.rows


def join_vectors(version: Version, work: Path, dims: int) -> tuple[F32, NDArray[np.int64]]:
    """All vectors that have a direction in one mapped file, and the number of each one's row in the version."""
    kept = [first + np.flatnonzero(vectors.any(axis=1)) for first, vectors in _pieces(version, work, dims)]
    ids = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    if not len(ids):
        return np.zeros((0, dims), np.float32), ids
    path = work / "vectors.f32"
    with naming(path), open(path, "wb") as file:
        # The system ends a process that writes to a mapped file for which the disk has no room.
        os.posix_fallocate(file.fileno(), 0, len(ids) * dims * 4)
    joined = np.memmap(path, np.float32, "r+", shape=(len(ids), dims))
    at = 0
    for (first, vectors), rows in zip(_pieces(version, work, dims), kept, strict=True):
        joined[at : at + len(rows)] = vectors[rows - first]
        at += len(rows)
    return joined, ids
