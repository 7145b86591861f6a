"""The row cache: rows that were made once, in arrays of artefacts (`aifx.core.artifact`) that are memory-mapped.

Rows of varied lengths, such as texts or conversations as tokens, are one after another in a `BlockArray`, whose blocks
have the size of a disk's reads; an array beside it says where each begins. Rows of one shape, such as pictures, are
`FixedRows`, whose blocks are the rows. A block is compared with its digest when it is first read, and made again if it
is damaged.

A row cache is named by all that its rows depend on, the code that makes them among it (`rows_key`). So other code makes
the rows again. What a run is compared with when it resumes is the digest of the rows themselves (`Artifact.digest`).
"""

from __future__ import annotations

import io
import logging
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from aifx.core.artifact import BLOCKS, Artifact, DamagedArtifact, Files, cached, damaged_files, read_sealed, seal_files
from aifx.core.code_digest import code_digest
from aifx.core.digests import BLOCK_BYTES, DIGEST_BYTES, Sha256, sha256_of_json
from aifx.core.errors import EnvironmentFault
from aifx.core.files import UnsafeFile, open_file, replace_file, replacing
from aifx.core.json_values import plain
from aifx.core.os_errors import naming

logger = logging.getLogger(__name__)

SUFFIX = ".npy"

VERSION = 1  # version of the content of all row caches: their keys say what they hold
UNCOUNTED = ("aifx.core", "aifx.config")  # modules that open files and read settings, and decide no row

T = TypeVar("T")


def rows_key(module: str, *depends_on: Any) -> str:
    """A digest of all that rows depend on.

    Args:
        module: that makes them, with what it imports of `aifx.data`, and the versions of the libraries.
        depends_on: what they are made of, as JSON can hold it.
    """
    return sha256_of_json(plain([code_digest(module, UNCOUNTED), *depends_on]))


# Each read looks up its blocks in `_checked`, a byte per block, and digests those that were not compared yet: a block
# costs its SHA-256 once per process, and later reads a look at a byte. A damaged block is not an error, since all rows
# can be made again: `repair` does so, checks that they have the same digest as before, and returns a map of the file.
# The lock keeps threads from repairing a file twice. A thread that reads `file` meanwhile may hold the old map, whose
# other blocks were compared, so its values are right.


class CheckedFile:
    """A memory-mapped file whose blocks are compared with their digests when each is first read.

    Args:
        file: uint8, its bytes.
        digests: SHA-256 of its blocks, one after the other.

    Attributes:
        repair: called with the number of a damaged block; returns the bytes of the file in which the block is whole, or
            raises. Without it a damaged block raises ValueError.
    """

    def __init__(self, file: np.ndarray, digests: bytes, block_bytes: int = BLOCK_BYTES) -> None:
        if len(digests) != -(-len(file) // block_bytes) * DIGEST_BYTES:
            raise ValueError(f"{len(digests)} bytes of digests for {len(file)} bytes")
        self.file, self.digests = file, digests
        self.repair: Callable[[int], np.ndarray] | None = None
        self._block_bytes = block_bytes
        self._checked = bytearray(len(digests) // DIGEST_BYTES)
        self._lock = threading.Lock()

    def _check(self, block: int) -> None:
        with self._lock:
            if not self._is_whole(block):
                self._make_again(block)
            self._checked[block] = 1

    def _make_again(self, block: int) -> None:
        if self.repair is None:
            raise ValueError(f"block {block} is damaged")
        self._map(self.repair(block))

    def _map(self, file: np.ndarray) -> None:
        self.file = file

    def _is_whole(self, block: int) -> bool:
        data = self.file[block * self._block_bytes : (block + 1) * self._block_bytes]
        return Sha256(data).digest() == self.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]


class BlockArray(CheckedFile):
    """A one-dimensional array in a .npy file, read by slices: rows of varied lengths, one after another.

    Raises ValueError if the block with the header is damaged. What else is in it is compared again when it is read.
    """

    def __init__(self, file: np.ndarray, digests: bytes) -> None:
        super().__init__(file, digests)
        if not self._is_whole(0):
            raise ValueError("the block of its header is damaged")
        header = io.BytesIO(file[:BLOCK_BYTES].tobytes())
        np.lib.format.read_magic(header)
        _, _, self._dtype = np.lib.format.read_array_header_1_0(header)
        self._start = header.tell()
        self._map(file)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(len(self._values))
        assert step == 1
        head, size = self._start, self._values.itemsize
        for block in range((head + start * size) // BLOCK_BYTES, -(-(head + stop * size) // BLOCK_BYTES)):
            if not self._checked[block]:
                self._check(block)
        return self._values[start:stop]

    def _map(self, file: np.ndarray) -> None:
        self.file = file
        self._values: np.ndarray = file[self._start :].view(self._dtype)


class FixedRows(CheckedFile):
    """Rows uint8 `[rows, ...]` of one shape in a file without a header, each a block, read by arrays of their numbers.

    Raises ValueError for a file of another size.
    """

    def __init__(self, file: np.ndarray, digests: bytes, shape: tuple[int, ...]) -> None:
        super().__init__(file, digests, math.prod(shape))
        self.shape = (len(digests) // DIGEST_BYTES, *shape)
        if len(file) != math.prod(self.shape):
            raise ValueError(f"{len(file)} bytes for {self.shape[0]} rows")

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        is_checked = np.frombuffer(self._checked, np.bool_)
        for row in np.unique(which[~is_checked[which]]).tolist():
            self._check(row)
        found: np.ndarray = self.file.reshape(self.shape)[which]
        return found


class ArrayWriter:
    """Writes a one-dimensional array into a .npy file as its values come.

    Attributes:
        length: values so far.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self.dtype = dtype
        self.length = 0
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - finish closes it
        self._header()

    def append(self, values: np.ndarray) -> None:
        with naming(self._path):
            self._file.write(np.ascontiguousarray(values, self.dtype))
        self.length += len(values)

    def finish(self) -> None:
        with naming(self._path):
            self._file.seek(0)
            self._header()
            self._file.close()

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


def write_array(path: Path, values: np.ndarray) -> None:
    """Write a one-dimensional array into a .npy file."""
    with closing(ArrayWriter(path, values.dtype)) as writer:
        writer.append(values)
        writer.finish()


def cached_arrays(
    place: Path, kind: str, write: Callable[[Path], Mapping[str, Any]], *, whole: bool = False
) -> tuple[Artifact, dict[str, BlockArray]]:
    """The artefact at `place` and its arrays by name, made first if it is missing or damaged.

    It is also made again, with a warning, if a block turns out to be damaged when it is read. Reading the block then
    raises what `write` raises, and EnvironmentFault if the artefact is not what it was.

    Args:
        kind: as messages name it, such as "token store".
        write: writes the arrays, one-dimensional, into the folder that it is given, as <name>.npy; returns the content.
        whole: compare all blocks now. What is there after `write` is compared so in any case: another process may have
            put it there.

    Raises as `cached`.
    """

    def make(folder: Path) -> tuple[Mapping[str, Any], Files]:
        nonlocal whole
        whole = True
        content = write(folder)
        return content, seal_files(folder, sorted(folder.glob(f"*{SUFFIX}")), blocks=True)

    def open_all(folder: Path, artifact: Artifact) -> tuple[Artifact, dict[str, BlockArray]]:
        if whole and (damaged := damaged_files(folder, artifact)):
            raise DamagedArtifact(folder, damaged[0])
        arrays = {}
        for file in (name for name in artifact.files if name.endswith(SUFFIX)):
            digests = read_sealed(folder, artifact, beside := f"{file}{BLOCKS}", limit=artifact.files[beside].bytes)
            arrays[file.removesuffix(SUFFIX)] = open_mapped(folder / file, partial(BlockArray, digests=digests))
        return artifact, arrays

    def made_again(name: str, digests: bytes, _: int) -> np.ndarray:
        with lock:  # another thread, or another process, may have made it meanwhile
            again = cached_arrays(place, kind, write, whole=True)[1][name]
        if again.digests != digests:
            why = "aifx made it again, and it is not what it was"
            raise EnvironmentFault(f"the {kind} {place} is damaged", why, f"rm -r {place}")
        return again.file

    lock = threading.Lock()
    artifact, arrays = cached(place, kind, VERSION, make, open_all, logger.warning)
    for name, values in arrays.items():
        values.repair = partial(made_again, name, values.digests)
    return artifact, arrays


def open_mapped(path: Path, open_it: Callable[[np.ndarray], T]) -> T:
    """A file of an artefact, as `open_it` returns its bytes, uint8, memory-mapped.

    Raises DamagedArtifact for one that is missing, a link or empty, or for which `open_it` raises ValueError; OSError.
    """
    try:
        with open(open_file(path, below=path.parent), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return open_it(np.frombuffer(data, np.uint8))
    except (FileNotFoundError, UnsafeFile, ValueError) as e:
        why = e.what if isinstance(e, UnsafeFile) else f"{path.name}: {e}"
        raise DamagedArtifact(path.parent, why) from e


# Caches of one file, such as a tokenizer or an index: it ends with the SHA-256 of its other bytes.


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
