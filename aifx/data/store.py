"""The token store: a split's tokens in one memory-mapped array, with an index of its documents.

A store is a row cache (`aifx.data.row_cache`). That of files is in the cache, that of a data set beside it. Its
manifest says of each split whether it is closed, and its bytes. For each split it holds

    <split>.tokens.npy      uint16 or uint32 [n]: eos, a document, eos, a document, ..., and eos if the last ends here
    <split>.documents.npy   int64 [documents + 1]: positions of the eos before each document, and of the end of the last
    <split>.sizes.npy       uint32 [n]: bytes of the text of each token. Only of the splits that are held out, and only
                            if the tokenizer is not byte-level: otherwise a token's id says its size

A block of an array is verified when it is first read. A damaged store is built again, also while training reads it.
The folder may also hold packings that can be made again (`aifx.data.text`): no part of the artefact, and deleted
with it.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from aifx.core.progress import report_progress
from aifx.data.corpus import Corpus
from aifx.data.readers.documents import Piece
from aifx.data.row_cache import SUFFIX, ArrayWriter, BlockArray, cached_arrays, write_array
from aifx.data.splits import SPLITS, Split
from aifx.data.tokenizer import Tokenizer, text_sizes

logger = logging.getLogger(__name__)

# A batch has enough pieces a core that its last ones cost little, and a bound on the memory of its encodings.
BATCH_CHARACTERS = min(os.cpu_count() or 1, 32) << 20
AHEAD = 2  # batches that are encoded at a time, so that no core waits between them


@dataclass(frozen=True)
class SplitTokens:
    """One split of a store.

    Attributes:
        tokens: `[n]`, beginning with eos: each after the first is a target with a token before it.
        documents: `[documents + 1]`, positions of the eos before each document and of the end of the last.
        closed: whether the last document ends here; otherwise the next split cut it.
        num_bytes: of the text, UTF-8.
        sizes: `[n]`, bytes of the text of each token; None if the store does not have them.
        bytes_by_id: `[vocab_size]`, the bytes of each token if its id says them.
    """

    tokens: np.ndarray | BlockArray
    documents: np.ndarray | BlockArray
    closed: bool
    num_bytes: int
    sizes: np.ndarray | BlockArray | None = None
    bytes_by_id: np.ndarray | None = None

    @property
    def num_targets(self) -> int:
        """The tokens of the text, and one for each document that ends here."""
        return max(len(self.tokens) - 1, 0)

    def text_bytes(self, start: int, stop: int) -> int:
        """Bytes of the text of the targets from `start` (1 or more) up to `stop`.

        If the sizes are not known, all targets have an equal share. Either way, those of all targets add up to
        `num_bytes`.
        """
        if self.bytes_by_id is not None:
            return int(self.bytes_by_id[self.tokens[start:stop]].sum(dtype=np.int64))
        if self.sizes is not None:
            return int(self.sizes[start:stop].sum(dtype=np.int64))
        first, last = (self.num_bytes * (place - 1) // self.num_targets for place in (start, stop))
        return last - first


@dataclass(frozen=True)
class TokenStore:
    """An opened store.

    Attributes:
        digest: of the tokens and the sizes of their texts.
    """

    path: Path
    digest: str
    splits: dict[Split, SplitTokens]


def stored_tokens(path: Path, corpus: Corpus, tokenizer: Tokenizer, *, whole: bool = False) -> TokenStore:
    """The tokens of `corpus` from the store at `path`, which is built if it is missing or damaged.

    Another process may build the same store at the same time.

    Args:
        whole: verify all blocks now, and not each when it is read.

    Raises DataError if the text changes meanwhile, EnvironmentFault if the store cannot be put in place.
    """
    artifact, arrays = cached_arrays(path, "token store", partial(_build, corpus, tokenizer), whole=whole)
    splits: dict[Split, SplitTokens] = {}
    for split in SPLITS:
        tokens, documents = arrays[f"{split}.tokens"], arrays[f"{split}.documents"]
        splits[split] = SplitTokens(tokens, documents, sizes=arrays.get(f"{split}.sizes"), **artifact.content[split])
    return TokenStore(path, artifact.digest, splits)


def _build(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Encode `corpus` into the arrays of a store. Returns the facts of each split for its manifest."""
    with ExitStack() as opened:
        writers = {split: _SplitWriter(folder, split, tokenizer, opened) for split in SPLITS}
        activity = f"tokenizing {corpus.names('train')}"
        logger.info(activity)
        with report_progress(activity, corpus.expected_bytes(*SPLITS), "bytes") as progress:
            for split, piece, encoding in _encoded(corpus, tokenizer):
                writers[split].write(piece, encoding)
                progress.advance(piece.num_bytes)
        splits: dict[str, Any] = {split: writer.finish() for split, writer in writers.items()}
        corpus.check_unchanged()
        return splits


def _encoded(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[Split, Piece, Encoding]]:
    """Each piece with its encoding, which has offsets if its split has sizes.

    Threads keep the encoder, which works outside the interpreter's lock, busy with the batches ahead while this one
    takes the ids of those that are done.
    """
    pending: deque[Future[list[tuple[Split, Piece, Encoding]]]] = deque()

    def finished() -> Iterator[tuple[Split, Piece, Encoding]]:
        encoded = pending.popleft().result()
        while encoded:
            yield encoded.pop()  # so that each is freed when it was taken

    with ThreadPoolExecutor(AHEAD, "encode") as pool:
        for batch in _batches(corpus, tokenizer):
            pending.append(pool.submit(_encode, batch, tokenizer))
            if len(pending) > AHEAD:
                yield from finished()
        while pending:
            yield from finished()


def _encode(batch: list[tuple[Split, Piece]], tokenizer: Tokenizer) -> list[tuple[Split, Piece, Encoding]]:
    """A batch's pieces with their encodings, the last first. Those with offsets take more than twice the time."""
    needed = [_has_sizes(split, tokenizer) for split, _ in batch]
    made = {}
    for offsets in set(needed):
        texts = [piece.text for (_, piece), own in zip(batch, needed, strict=True) if own == offsets]
        made[offsets] = iter(tokenizer.encode_batch(texts, offsets=offsets))
    return [(*item, next(made[offsets])) for item, offsets in zip(batch, needed, strict=True)][::-1]


def _has_sizes(split: Split, tokenizer: Tokenizer) -> bool:
    """Whether the store keeps the sizes of the tokens of a split."""
    return split != "train" and not tokenizer.is_byte_level


def _batches(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[list[tuple[Split, Piece]]]:
    """Batches of pieces, those of long text without a place to cut in parts."""
    batch: list[tuple[Split, Piece]] = []
    size = 0
    for split, piece in corpus.pieces(whole=not tokenizer.can_cut):
        *parts, last = tokenizer.divide(piece.text)
        pieces = [*(Piece(part, closes=False) for part in parts), Piece(last, piece.closes) if parts else piece]
        for part in pieces:
            batch.append((split, part))
            size += len(part.text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


class _SplitWriter:
    """Writes the arrays of a split as their pieces come. `opened` closes their files."""

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer, opened: ExitStack) -> None:
        def writer(name: str, dtype: type[np.unsignedinteger[Any]]) -> ArrayWriter:
            return opened.enter_context(closing(ArrayWriter(folder / f"{split}.{name}{SUFFIX}", np.dtype(dtype))))

        self._documents_path = folder / f"{split}.documents{SUFFIX}"
        self._tokens = writer("tokens", np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._sizes = writer("sizes", np.uint32) if _has_sizes(split, tokenizer) else None
        self._eos_id = tokenizer.eos_id
        self._documents = array("q")
        self._num_bytes = 0
        self._without_token = 0  # bytes of text of which the tokenizer made nothing
        self._open = False  # inside a document

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
        for writer in filter(None, (self._tokens, self._sizes)):
            writer.finish()
        write_array(self._documents_path, np.frombuffer(self._documents, np.int64))
        return {"closed": closed, "num_bytes": self._num_bytes - self._without_token}

    def _end(self) -> None:
        """Append an eos. Text without a token counts with the eos that ends it."""
        self._tokens.append(np.array([self._eos_id]))
        if self._sizes is not None:
            self._sizes.append(np.array([self._without_token]))
        self._without_token = 0
