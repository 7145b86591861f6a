"""The token store: a split's tokens in one memory-mapped array, with an index of its documents.

A store is a folder of the cache, named by a digest of all that its content depends on, and complete when its
meta.json is there: builders write beside it and rename. For each split it holds

    <split>.tokens.npy      uint16 or uint32 [n]: eos, a document, eos, a document, ..., and eos if the last ends here
    <split>.documents.npy   int64 [documents + 1]: where the eos before each document stands, and where the last ends
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Encoding

from aifx.data.base import Split
from aifx.data.corpus import SPLITS, Corpus
from aifx.data.files import Piece
from aifx.data.tokenizer import Tokenizer
from aifx.errors import EnvironmentFault
from aifx.files import remove_temporary, replace_file
from aifx.os_errors import errno_of, naming
from aifx.private_folders import make_private

FORMAT = 1
# A batch has enough pieces a core that its last ones cost little, and a bound on the memory of its encodings.
BATCH_CHARACTERS = min(os.cpu_count() or 1, 32) << 20
AHEAD = 2  # batches that are encoded at a time, so that no core waits between them
STRAY_AFTER_S = 24 * 3600.0


@dataclass(frozen=True)
class SplitTokens:
    """One split of a store.

    tokens: [n], beginning with eos, so that each token after the first is a target with something before it.
    documents: [documents + 1], positions of the eos before each document and of the end of the last.
    closed: whether the last document ends here; else it was cut by the next split.
    num_bytes: of the text, UTF-8.
    """

    tokens: np.ndarray
    documents: np.ndarray
    closed: bool
    num_bytes: int

    @property
    def num_targets(self) -> int:
        return max(len(self.tokens) - 1, 0)


@dataclass(frozen=True)
class TokenStore:
    """An opened store. Its folder may hold indices besides, which can be made again (see `sequences`)."""

    path: Path
    splits: dict[Split, SplitTokens]


def open_store(path: Path) -> TokenStore | None:
    """The store at `path`, or None where there is none that is whole."""
    splits: dict[Split, SplitTokens] = {}
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        for split in SPLITS:
            tokens, documents = (np.load(path / name, mmap_mode="r") for name in _file_names(split))
            splits[split] = SplitTokens(tokens, documents, **meta["splits"][split])
        whole = meta["format"] == FORMAT and meta["sizes"] == _sizes(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return TokenStore(path, splits) if whole else None


def build_store(path: Path, corpus: Corpus, tokenizer: Tokenizer) -> TokenStore:
    """Encodes `corpus` into a store at `path`. Another process that builds the same one does no harm."""
    with cache_folder(path.parent):
        _sweep(path.parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    writers: dict[Split, _SplitWriter] = {}
    try:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        for split in SPLITS:
            writers[split] = _SplitWriter(folder, split, dtype, tokenizer.eos_id)
        for split, piece, ids in _encoded(corpus, tokenizer):
            writers[split].write(piece, ids)
        splits = {split: writer.finish() for split, writer in writers.items()}
        corpus.check_unchanged()
        meta = {"format": FORMAT, "sizes": _sizes(folder), "splits": splits}
        write_synced(folder / "meta.json", json.dumps(meta, indent=1).encode())
        return _put(folder, path)
    finally:
        for writer in writers.values():
            writer.close()
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, path: Path) -> TokenStore:
    """Makes `folder` the store at `path`, unless one that is whole came there first."""
    why = "something else writes there"
    for _ in range(10):
        try:
            os.rename(folder, path)
        except OSError as error:
            why = why if errno_of(error) is None else str(error)
        if store := open_store(path):
            return store
        # Something damaged is in the way.
        aside = tempfile.mkdtemp(prefix=f"{path.name}.tmp-damaged-", dir=path.parent)
        with contextlib.suppress(OSError):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    raise EnvironmentFault(f"{path} cannot be put in place", why, f"rm -r {path}")


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for split in SPLITS for name in _file_names(split)}


def _file_names(split: Split) -> tuple[str, str]:
    return f"{split}.tokens.npy", f"{split}.documents.npy"


def _encoded(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[Split, Piece, list[int]]]:
    """Each piece with its token ids. Threads keep the encoder, which works outside the interpreter's lock, busy with
    the batches ahead while this one takes the ids of those that are done."""
    pending: deque[tuple[list[tuple[Split, Piece]], Future[list[Encoding]]]] = deque()
    with ThreadPoolExecutor(AHEAD, "encode") as pool:
        for batch in _batches(corpus.pieces(whole=not tokenizer.can_cut)):
            pending.append((batch, pool.submit(tokenizer.encode_batch, [piece.text for _, piece in batch])))
            if len(pending) > AHEAD:
                yield from _ids(*pending.popleft())
        while pending:
            yield from _ids(*pending.popleft())


def _ids(batch: list[tuple[Split, Piece]], encoded: Future[list[Encoding]]) -> Iterator[tuple[Split, Piece, list[int]]]:
    encodings = encoded.result()
    encodings.reverse()  # so that each is freed when its ids are taken
    for split, piece in batch:
        yield split, piece, encodings.pop().ids


def _batches(pieces: Iterator[tuple[Split, Piece]]) -> Iterator[list[tuple[Split, Piece]]]:
    batch: list[tuple[Split, Piece]] = []
    size = 0
    for item in pieces:
        batch.append(item)
        size += len(item[1].text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _SplitWriter:
    """Writes the two arrays of a split as their pieces come."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype[Any], eos_id: int) -> None:
        self._tokens_path, self._documents_path = (folder / name for name in _file_names(split))
        self._dtype = dtype
        self._eos = np.array([eos_id], dtype).tobytes()
        self._documents = array("q")
        self._length = 0
        self._num_bytes = 0
        self._open = False  # inside a document
        self._file: IO[bytes] = open(self._tokens_path, "wb")  # noqa: SIM115 - finish closes it
        self._header()

    def write(self, piece: Piece, ids: list[int]) -> None:
        with naming(self._tokens_path):
            if not self._open:
                self._documents.append(self._length)
                self._file.write(self._eos)
                self._length += 1
            self._file.write(np.fromiter(ids, self._dtype, len(ids)))
        self._length += len(ids)
        self._num_bytes += piece.num_bytes
        self._open = not piece.closes

    def finish(self) -> dict[str, Any]:
        closed = not self._open and self._length > 0
        self._documents.append(self._length)
        with naming(self._tokens_path):
            if closed:
                self._file.write(self._eos)
                self._length += 1
            self._file.seek(0)
            self._header()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        write_synced_array(self._documents_path, np.frombuffer(self._documents, np.int64))
        return {"closed": closed, "num_bytes": self._num_bytes}

    def close(self) -> None:
        """Give up the file, if it is open. What it still holds is not needed, so a refusal to write it is ignored:
        Python would print it as a traceback when it frees the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _header(self) -> None:
        """The .npy header: NumPy pads it so that a longer length fits in the same bytes."""
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Makes a folder of the cache for what is written inside. Raises EnvironmentFault where it cannot be written."""
    try:
        make_private(folder)
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        hint = "AIFX_CACHE_DIR=/path/to/write/to aifx train"
        raise EnvironmentFault(f"{folder} cannot be written", error.strerror or "", hint) from error


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file so that it is there, whole or not at all, whatever stops the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def write_synced_array(path: Path, values: np.ndarray) -> None:
    """`write_synced` of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, values)
    write_synced(path, stream.getvalue())


def _sweep(folder: Path) -> None:
    """Removes what builders that were killed left behind."""
    for stray in folder.glob("*.tmp-*"):
        try:
            if time.time() - stray.stat().st_mtime > STRAY_AFTER_S:
                shutil.rmtree(stray, ignore_errors=True)
        except OSError:
            continue
    remove_temporary(folder)
