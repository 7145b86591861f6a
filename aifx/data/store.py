"""The token store: a split's tokens in one memory-mapped array, with an index of its documents.

A store is a folder, named by FORMAT and a digest of all that its content depends on, and complete when its meta.json is
there: builders write beside it and rename. That of files is in the cache, that of a data set beside it. For each split
it holds

    <split>.tokens.npy      uint16 or uint32 [n]: eos, a document, eos, a document, ..., and eos if the last ends here
    <split>.documents.npy   int64 [documents + 1]: positions of the eos before each document, and of the end of the last
    <split>.sizes.npy       uint32 [n]: bytes of the text of each token. Only of the splits that are held out, and only
                            if the tokenizer is not byte-level: otherwise a token's id says its size
    <split>.<array>.sha256  SHA-256 of each 64 KiB of the tokens and of the sizes, one after the other

The documents and the digests end with a SHA-256 of their own, which is verified when the store is opened, as that of
meta.json is. A block of tokens or sizes is verified when it is first read. A damaged store is built again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from tokenizers import Encoding

from aifx.core.artifact import UNFINISHED, unfinished
from aifx.core.digests import BlockDigests, sha256_of
from aifx.core.errors import EnvironmentFault
from aifx.core.files import replace_file
from aifx.core.os_errors import errno_of, naming
from aifx.core.progress import report_progress
from aifx.data.base import SPLITS, Split
from aifx.data.blocks import BlockArray, read_array, read_checked, write_array, write_checked
from aifx.data.corpus import TextCorpus
from aifx.data.files import Piece
from aifx.data.tokenizer import Tokenizer, text_sizes

logger = logging.getLogger(__name__)

FORMAT = 4
"""Version of the files of a store: a part of its name."""

TOKENS_VERSION = 3
"""Version of the tokens in it: a part of the digest of a run's data, which a resume compares."""

ARRAYS = ("tokens", "sizes")
# A batch has enough pieces a core that its last ones cost little, and a bound on the memory of its encodings.
BATCH_CHARACTERS = min(os.cpu_count() or 1, 32) << 20
AHEAD = 2  # batches that are encoded at a time, so that no core waits between them


class Sizes(Protocol):
    """Bytes of the text of each token of a split."""

    def __getitem__(self, part: slice) -> np.ndarray: ...


@dataclass(frozen=True)
class SizesById:
    """The sizes of tokens whose ids say them."""

    tokens: np.ndarray | BlockArray
    token_bytes: np.ndarray  # int64 [vocab_size]

    def __getitem__(self, part: slice) -> np.ndarray:
        found: np.ndarray = self.token_bytes[self.tokens[part]]
        return found


@dataclass(frozen=True)
class SplitTokens:
    """One split of a store."""

    tokens: np.ndarray | BlockArray  # [n], beginning with eos: each after the first is a target with a token before it
    documents: np.ndarray  # [documents + 1], positions of the eos before each document and of the end of the last
    closed: bool  # whether the last document ends here; otherwise the next split cut it
    num_bytes: int  # of the text, UTF-8
    sizes: Sizes | None = None  # [n], bytes of the text of each token; None if they are not known

    @property
    def num_targets(self) -> int:
        """The tokens of the text, and one for each document that ends here."""
        return max(len(self.tokens) - 1, 0)

    def text_bytes(self, start: int, stop: int) -> int:
        """Bytes of the text of the targets from `start` (1 or more) up to `stop`.

        If the sizes are not known, all targets have an equal share. Either way, those of all targets add up to
        `num_bytes`.
        """
        if self.sizes is not None:
            return int(self.sizes[start:stop].sum(dtype=np.int64))
        first, last = (self.num_bytes * (place - 1) // self.num_targets for place in (start, stop))
        return last - first


@dataclass(frozen=True)
class TokenStore:
    """An opened store. Its folder may also hold indices, which can be made again (see `sequences`)."""

    path: Path
    splits: dict[Split, SplitTokens]

    @property
    def arrays(self) -> dict[str, BlockArray]:
        """The tokens of each split, and the sizes of those that have some, by the names of their files."""
        named = {f"{split}.{name}": getattr(s, name) for split, s in self.splits.items() for name in ARRAYS}
        return {name: array for name, array in named.items() if isinstance(array, BlockArray)}

    def is_whole(self) -> bool:
        return all(array.is_whole() for array in self.arrays.values())


def open_store(path: Path) -> TokenStore | None:
    """The store at `path`; None if there is none or it is damaged. The blocks of tokens are not read."""
    splits: dict[Split, SplitTokens] = {}
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        digest = meta.pop("sha256")
        if digest != sha256_of(json.dumps(meta)) or meta["format"] != FORMAT:
            return None
        for split in SPLITS:
            arrays: dict[str, BlockArray] = {}
            for name, (dtype, length) in meta["arrays"][split].items():
                values = np.load(path / f"{split}.{name}.npy", mmap_mode="r")
                if (values.dtype.str, len(values)) != (dtype, length):
                    return None
                arrays[name] = BlockArray(values, bytes(read_checked(path / f"{split}.{name}.sha256")))
            documents = read_array(path / f"{split}.documents.npy")
            sizes = arrays.get("sizes")
            splits[split] = SplitTokens(arrays["tokens"], documents, sizes=sizes, **meta["splits"][split])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return TokenStore(path, splits)


def guard(store: TokenStore, build: Callable[[], TokenStore]) -> None:
    """Let `store` build itself again, with a warning, if a block that is read turns out to be damaged.

    Reading such a block raises what `build` raises, and EnvironmentFault if the store is damaged even then.
    """
    lock = threading.Lock()

    def repaired(name: str, block: int) -> np.ndarray:
        with lock:  # another thread, or another process, may have built it meanwhile
            found = open_store(store.path)
            if found is None or not found.is_whole():
                logger.warning(f"the token store {store.path} is damaged (block {block} of {name}); building it again")
                found = build()
            rebuilt = found.arrays[name]
            if rebuilt.digests != store.arrays[name].digests or not found.is_whole():
                why = "aifx built it again, and what it reads back is not what it wrote"
                raise EnvironmentFault(f"the token store {store.path} is damaged", why, f"rm -r {store.path}")
            return rebuilt.values

    for name, values in store.arrays.items():
        values.repair = partial(repaired, name)


def build_store(path: Path, corpus: TextCorpus, tokenizer: Tokenizer) -> TokenStore:
    """Encode `corpus` into a store at `path`. Another process may build the same store at the same time."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    with unfinished(path) as folder, ExitStack() as opened:
        writers: dict[Split, _SplitWriter] = {}
        for split in SPLITS:
            has_sizes = _has_sizes(split, tokenizer)
            writers[split] = _SplitWriter(folder, split, dtype, tokenizer.eos_id, has_sizes=has_sizes)
            opened.callback(writers[split].close)
        activity = f"tokenizing {corpus.names('train')}"
        logger.info(activity)
        with report_progress(activity, corpus.expected_bytes(*SPLITS), "bytes") as progress:
            for split, piece, encoding in _encoded(corpus, tokenizer):
                writers[split].write(piece, encoding)
                progress.advance(piece.num_bytes)
        splits = {split: writer.finish() for split, writer in writers.items()}
        corpus.check_unchanged()
        meta: dict[str, Any] = {"format": FORMAT, "splits": splits}
        meta["arrays"] = {split: writer.arrays for split, writer in writers.items()}
        meta["sha256"] = sha256_of(json.dumps(meta))
        replace_file(folder / "meta.json", json.dumps(meta, indent=1).encode())
        return _put(folder, path)


def _put(folder: Path, path: Path) -> TokenStore:
    """Makes `folder` the store at `path`, unless one that is whole came there first."""
    why = "something else writes there"
    folder.chmod(stat.S_IMODE(path.parent.stat().st_mode))  # a store beside a shared data set is shared as well
    for _ in range(10):
        try:
            os.rename(folder, path)
        except OSError as error:
            why = why if errno_of(error) is None else str(error)
        store = open_store(path)
        if store is not None and store.is_whole():
            return store
        # Something damaged is in the way.
        aside = tempfile.mkdtemp(prefix=f"{path.name}{UNFINISHED}damaged-", dir=path.parent)
        with suppress(OSError):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    raise EnvironmentFault(f"{path} cannot be put in place", why, f"rm -r {path}")


def _encoded(corpus: TextCorpus, tokenizer: Tokenizer) -> Iterator[tuple[Split, Piece, Encoding]]:
    """Each piece with its encoding, which has offsets if its split has sizes.

    Threads keep the encoder, which works outside the interpreter's lock, busy with the batches ahead while this one
    takes the ids of those that are done.
    """
    pending: deque[tuple[list[tuple[Split, Piece]], Future[list[Encoding]]]] = deque()
    with ThreadPoolExecutor(AHEAD, "encode") as pool:
        for batch in _batches(_divided(corpus.pieces(whole=not tokenizer.can_cut), tokenizer)):
            pending.append((batch, pool.submit(_encode, batch, tokenizer)))
            if len(pending) > AHEAD:
                yield from _joined(*pending.popleft())
        while pending:
            yield from _joined(*pending.popleft())


def _encode(batch: list[tuple[Split, Piece]], tokenizer: Tokenizer) -> list[Encoding]:
    """The encodings of a batch's pieces. Those with offsets take more than twice the time."""
    needed = [_has_sizes(split, tokenizer) for split, _ in batch]
    made = {}
    for offsets in set(needed):
        texts = [piece.text for (_, piece), own in zip(batch, needed, strict=True) if own == offsets]
        made[offsets] = iter(tokenizer.encode_batch(texts, offsets=offsets))
    return [next(made[offsets]) for offsets in needed]


def _has_sizes(split: Split, tokenizer: Tokenizer) -> bool:
    """Whether the store keeps the sizes of the tokens of a split."""
    return split != "train" and not tokenizer.is_byte_level


def _joined(
    batch: list[tuple[Split, Piece]], encoded: Future[list[Encoding]]
) -> Iterator[tuple[Split, Piece, Encoding]]:
    encodings = encoded.result()
    encodings.reverse()  # so that each is freed when it was taken
    for split, piece in batch:
        yield split, piece, encodings.pop()


def _divided(pieces: Iterator[tuple[Split, Piece]], tokenizer: Tokenizer) -> Iterator[tuple[Split, Piece]]:
    """The pieces, those of long text without a place to cut in parts."""
    for split, piece in pieces:
        *parts, last = tokenizer.divide(piece.text)
        for part in parts:
            yield split, Piece(part, closes=False)
        yield split, Piece(last, piece.closes) if parts else piece


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
    """Writes the arrays of a split as their pieces come."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype[Any], eos_id: int, *, has_sizes: bool) -> None:
        self._documents_path = folder / f"{split}.documents.npy"
        self._tokens = _ArrayWriter(folder / f"{split}.tokens", dtype)
        self._sizes = _ArrayWriter(folder / f"{split}.sizes", np.dtype(np.uint32)) if has_sizes else None
        self._eos_id = eos_id
        self._documents = array("q")
        self._num_bytes = 0
        self._without_token = 0  # bytes of text of which the tokenizer made nothing
        self._open = False  # inside a document

    @property
    def arrays(self) -> dict[str, tuple[str, int]]:
        """The dtype and the length of each array."""
        written = {"tokens": self._tokens, "sizes": self._sizes}
        return {name: (writer.dtype.str, writer.length) for name, writer in written.items() if writer is not None}

    def write(self, piece: Piece, encoding: Encoding) -> None:
        if not self._open:
            self._documents.append(self._tokens.length)
            self._end()
        ids = encoding.ids
        self._tokens.append(np.fromiter(ids, self._tokens.dtype, len(ids)))
        self._num_bytes += piece.num_bytes
        if not ids:
            self._without_token += piece.num_bytes
        elif self._sizes is not None:
            self._sizes.append(text_sizes(piece.text, encoding))
        self._open = not piece.closes

    def finish(self) -> dict[str, Any]:
        closed = not self._open and self._tokens.length > 0
        self._documents.append(self._tokens.length)
        if closed:
            self._end()
        self._tokens.finish()
        if self._sizes is not None:
            self._sizes.finish()
        write_array(self._documents_path, np.frombuffer(self._documents, np.int64))
        return {"closed": closed, "num_bytes": self._num_bytes - self._without_token}

    def close(self) -> None:
        """Close the files, if they are open."""
        for writer in filter(None, (self._tokens, self._sizes)):
            writer.close()

    def _end(self) -> None:
        """Append an eos. Text without a token counts with the eos that ends it."""
        self._tokens.append(np.array([self._eos_id]))
        if self._sizes is not None:
            self._sizes.append(np.array([self._without_token]))
        self._without_token = 0


class _ArrayWriter:
    """Writes an array and the digests of its blocks as its values come."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path.with_name(f"{path.name}.npy")
        self._digests_path = path.with_name(f"{path.name}.sha256")
        self._digests = BlockDigests()
        self.dtype = dtype
        self.length = 0  # values so far
        self._file: IO[bytes] = open(self._path, "wb")  # noqa: SIM115 - finish closes it
        self._header()

    def append(self, values: np.ndarray) -> None:
        data = values.astype(self.dtype, copy=False).tobytes()
        with naming(self._path):
            self._file.write(data)
        self._digests.update(data)
        self.length += len(values)

    def finish(self) -> None:
        with naming(self._path):
            self._file.seek(0)
            self._header()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        write_checked(self._digests_path, self._digests.finish())

    def close(self) -> None:
        """Close the file, if it is open. Its content is not needed, so an error of writing it is ignored. Python would
        print that as a traceback when it frees the file."""
        with suppress(OSError):
            self._file.close()

    def _header(self) -> None:
        """The .npy header: NumPy pads it so that a longer length fits in the same bytes."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
