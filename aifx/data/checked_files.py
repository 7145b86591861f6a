"""Files of the cache that end with the SHA-256 of their bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from aifx.core.digests import DIGEST_BYTES, Sha256
from aifx.core.files import UnsafeFile, open_file, replace_file, replacing

logger = logging.getLogger(__name__)

T = TypeVar("T")


def write_checked(path: Path, data: bytes) -> None:
    """Write a file with the SHA-256 of its bytes behind them: whole or not at all, whatever stops the machine."""
    replace_file(path, with_digest(data))


@contextmanager
def writing_checked(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that appends to such a file, which is at `path` when the block ends."""
    digest = Sha256()
    with replacing(path) as file:

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        yield write
        file.write(digest.digest())


def with_digest(data: bytes) -> bytes:
    """The data with its SHA-256 at the end, as `read_checked` takes it."""
    return data + Sha256(data).digest()


def read_checked(path: Path) -> memoryview:
    """The data that `write_checked` wrote, memory-mapped.

    Raises OSError, UnsafeFile for a link or a FIFO, and ValueError if it is damaged.
    """
    with open(open_file(path), "rb") as file:
        content = memoryview(np.memmap(file, np.uint8, "r"))
    if Sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise ValueError(f"{path} is damaged")
    return content[:-DIGEST_BYTES]


def read_cached(read: Callable[[Path], T], path: Path, what: str) -> T | None:
    """The result of `read` for a file of the cache. None if there is none, and with a warning if it is damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, UnsafeFile):
        logger.warning(f"the {what} {path} is damaged; making it again")
        return None
