"""Files that are compared with digests: whole, or the blocks of an array when each is first read."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from aifx.core.digests import BLOCK_BYTES, DIGEST_BYTES, Sha256
from aifx.core.files import replace_file

logger = logging.getLogger(__name__)

T = TypeVar("T")


def write_checked(path: Path, data: bytes) -> None:
    """Write a file with the SHA-256 of its bytes behind them: whole or not at all, whatever stops the machine."""
    replace_file(path, with_digest(data))


def with_digest(data: bytes) -> bytes:
    """The data with its SHA-256 at the end, as `read_checked` takes it."""
    return data + Sha256(data).digest()


def read_checked(path: Path) -> memoryview:
    """What `write_checked` wrote, memory-mapped. Raises OSError, and ValueError if it is damaged."""
    content = memoryview(np.memmap(path, np.uint8, "r"))
    if Sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise ValueError(f"{path} is damaged")
    return content[:-DIGEST_BYTES]


def write_array(path: Path, values: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, values)
    write_checked(path, stream.getvalue())


def read_array(path: Path) -> np.ndarray:
    """What `write_array` wrote, memory-mapped. Raises OSError, and ValueError if it is damaged."""
    read_checked(path)
    values: np.ndarray = np.load(path, mmap_mode="r")
    return values


def read_cached(read: Callable[[Path], T], path: Path, what: str) -> T | None:
    """What `read` makes of a file of the cache. None if there is none, and with a warning if it is damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        logger.warning(f"the {what} {path} is damaged; making it again")
        return None


class BlockArray:
    """A one-dimensional array, read by slices.

    Args:
        values: memory-mapped; as they are in the file, not compared with their digests.
        digests: of its blocks, as `BlockDigests` makes them.

    Attributes:
        repair: called with the number of a damaged block; returns the same values from a file that was written again,
            or raises. Without it a damaged block raises ValueError.
    """

    def __init__(self, values: np.ndarray, digests: bytes) -> None:
        if len(digests) != -(-values.nbytes // BLOCK_BYTES) * DIGEST_BYTES:
            raise ValueError(f"{len(digests)} bytes of digests for {values.nbytes} bytes of values")
        self.digests = digests
        self.repair: Callable[[int], np.ndarray] | None = None
        self.values = values
        self._checked = bytearray(len(digests) // DIGEST_BYTES)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(len(self))
        assert step == 1
        size = self.values.itemsize
        for block in range(start * size // BLOCK_BYTES, -(-stop * size // BLOCK_BYTES)):
            if not self._checked[block]:
                self._check(block)
        return self.values[start:stop]

    def is_whole(self) -> bool:
        """Whether every block has the digest of its writing. Reads all of them."""
        return all(self._is_whole(block) for block in range(len(self._checked)))

    def _check(self, block: int) -> None:
        with self._lock:
            if not self._is_whole(block):
                if self.repair is None:
                    raise ValueError(f"block {block} is damaged")
                self.values = self.repair(block)
            self._checked[block] = 1

    def _is_whole(self, block: int) -> bool:
        data = memoryview(self.values.view(np.uint8))[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        return Sha256(data).digest() == self.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
