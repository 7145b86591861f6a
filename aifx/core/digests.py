"""SHA-256 and short hashes. Nothing else of aifx imports hashlib.

`sha256_of` and its siblings return 64 hexadecimal digits. `Sha256` is hashlib's object, for data that comes in pieces,
and for the 32 bytes themselves. `hash32` and `Hash64` draw seeds and splits, and prove nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aifx.core.progress import Reporter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BLOCK_BYTES = 1 << 16
"""A sequence of a few thousand tokens touches one or two blocks; their digests take 0.05 % of the array's size."""

Sha256 = hashlib.sha256
"""A hasher with `update`, `digest` and `hexdigest`. Hashlib's own, since rows are hashed by the million."""

READ_BYTES = 1 << 18
"""Bytes of a file at a time. Larger blocks take longer to allocate than they save in calls."""

DIGEST_BYTES = Sha256().digest_size

Hash64 = partial(hashlib.blake2b, digest_size=8)
"""A hasher like `Sha256` whose digest is 8 bytes: BLAKE2b."""


def sha256_of(data: ReadableBuffer | str) -> str:
    """SHA-256 of bytes, or of a text's UTF-8."""
    return Sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_of_values(*values: object) -> str:
    """SHA-256 of the values' `repr`: a key of a cache, or a digest of settings."""
    return sha256_of(repr(values))


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys, separators `,` and `:`, ASCII only."""
    return Sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of_blocks(blocks: Iterable[ReadableBuffer], progress: Reporter | None = None) -> str:
    """SHA-256 of blocks of bytes, one after another."""
    digest = Sha256()
    for block in blocks:
        digest.update(block)
        if progress is not None:
            progress.advance(memoryview(block).nbytes)
    return digest.hexdigest()


def sha256_of_file(file: Path | IO[bytes], progress: Reporter | None = None) -> str:
    """SHA-256 of a file, or of the rest of an open one. Raises OSError."""
    if isinstance(file, Path):
        with open(file, "rb") as stream:
            return sha256_of_file(stream, progress)
    return sha256_of_blocks(iter(partial(file.read, READ_BYTES), b""), progress)


def size_and_sha256(file: IO[bytes]) -> tuple[int, str]:
    """The number of bytes of an open file, which is at its start, and their SHA-256. Raises OSError."""
    digest = sha256_of_file(file)
    return file.tell(), digest


class BlockDigests:
    """SHA-256 of each BLOCK_BYTES of what is written, in the order in which it comes."""

    def __init__(self) -> None:
        self._done = bytearray()
        self._rest = bytearray()  # of a block that is not full

    def update(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= BLOCK_BYTES:
            self._done += Sha256(self._rest[:BLOCK_BYTES]).digest()
            del self._rest[:BLOCK_BYTES]

    def finish(self) -> bytes:
        """The digests of all blocks, one after the other."""
        return bytes(self._done) + (Sha256(self._rest).digest() if self._rest else b"")


def hash32(*values: object) -> int:
    """A 32-bit number that is a function of the values' `repr`, unrelated for values that differ."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=4).digest(), "big")


def fraction_of(hash64: bytes) -> float:
    """The digest of a `Hash64` as a number in [0, 1), by which shares are drawn."""
    return int.from_bytes(hash64, "big") / 2**64
