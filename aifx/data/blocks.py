"""Arrays of the cache, whose blocks are compared with their digests when each is first read, and single files that end
with the digest of their bytes."""

from __future__ import annotations

import io
import logging
import mmap
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from aifx.core.artifact import BLOCKS, Artifact, DamagedArtifact, Files, cached, damaged_files, read_sealed, seal_files
from aifx.core.digests import BLOCK_BYTES, DIGEST_BYTES, Sha256
from aifx.core.errors import EnvironmentFault
from aifx.core.files import UnsafeFile, open_file, replace_file
from aifx.core.os_errors import naming

logger = logging.getLogger(__name__)

SUFFIX = ".npy"

T = TypeVar("T")


def write_checked(path: Path, data: bytes) -> None:
    """Write a file with the SHA-256 of its bytes behind them: whole or not at all, whatever stops the machine."""
    replace_file(path, with_digest(data))


def with_digest(data: bytes) -> bytes:
    """The data with its SHA-256 at the end, as `read_checked` takes it."""
    return data + Sha256(data).digest()


def read_checked(path: Path) -> memoryview:
    """What `write_checked` wrote, memory-mapped. Raises OSError, UnsafeFile for a link or a FIFO, and ValueError if it
    is damaged."""
    with open(open_file(path), "rb") as file:
        content = memoryview(np.memmap(file, np.uint8, "r"))
    if Sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise ValueError(f"{path} is damaged")
    return content[:-DIGEST_BYTES]


def read_cached(read: Callable[[Path], T], path: Path, what: str) -> T | None:
    """What `read` makes of a file of the cache. None if there is none, and with a warning if it is damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, UnsafeFile):
        logger.warning(f"the {what} {path} is damaged; making it again")
        return None


class BlockArray:
    """A one-dimensional array in a .npy file, read by slices.

    Args:
        file: uint8, the bytes of the file, memory-mapped.
        digests: of its blocks, as `BlockDigests` makes them.

    Attributes:
        repair: called with the number of a damaged block; returns the array in a file that was written again, or
            raises. Without it a damaged block raises ValueError.

    Raises ValueError if the block with the header is damaged. What else is in it is compared again when it is read.
    """

    def __init__(self, file: np.ndarray, digests: bytes) -> None:
        if len(digests) != -(-len(file) // BLOCK_BYTES) * DIGEST_BYTES:
            raise ValueError(f"{len(digests)} bytes of digests for {len(file)} bytes")
        self.digests = digests
        self.repair: Callable[[int], BlockArray] | None = None
        self._file = file
        self._checked = bytearray(len(digests) // DIGEST_BYTES)
        self._lock = threading.Lock()
        if not self._is_whole(0):
            raise ValueError("the block of its header is damaged")
        header = io.BytesIO(file[:BLOCK_BYTES].tobytes())
        np.lib.format.read_magic(header)
        _, _, dtype = np.lib.format.read_array_header_1_0(header)
        self._start = header.tell()
        self._values: np.ndarray = file[self._start :].view(dtype)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(len(self))
        assert step == 1
        size, head = self._values.itemsize, self._start
        for block in range((head + start * size) // BLOCK_BYTES, -(-(head + stop * size) // BLOCK_BYTES)):
            if not self._checked[block]:
                self._check(block)
        return self._values[start:stop]

    def _check(self, block: int) -> None:
        with self._lock:
            if not self._is_whole(block):
                self._replace(block)
            self._checked[block] = 1

    def _replace(self, block: int) -> None:
        if self.repair is None:
            raise ValueError(f"block {block} is damaged")
        again = self.repair(block)
        self._file, self._values = again._file, again._values

    def _is_whole(self, block: int) -> bool:
        data = self._file[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        return Sha256(data).digest() == self.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]


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
    place: Path, kind: str, version: int, write: Callable[[Path], Mapping[str, Any]], *, whole: bool = False
) -> tuple[Mapping[str, Any], dict[str, BlockArray]]:
    """The content of the artefact at `place` and its arrays by name, made first if it is missing or damaged.

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

    def open_all(folder: Path, artifact: Artifact) -> tuple[Mapping[str, Any], dict[str, BlockArray]]:
        if whole and (damaged := damaged_files(folder, artifact)):
            raise DamagedArtifact(folder, damaged[0])
        names = (name.removesuffix(SUFFIX) for name in artifact.files if name.endswith(SUFFIX))
        return artifact.content, {name: _open_array(folder, artifact, name) for name in names}

    def made_again(name: str, digests: bytes, _: int) -> BlockArray:
        with lock:  # another thread, or another process, may have made it meanwhile
            again = cached_arrays(place, kind, version, write, whole=True)[1][name]
        if again.digests != digests:
            why = "aifx made it again, and it is not what it was"
            raise EnvironmentFault(f"the {kind} {place} is damaged", why, f"rm -r {place}")
        return again

    lock = threading.Lock()
    content, arrays = cached(place, kind, version, make, open_all, logger.warning)
    for name, values in arrays.items():
        values.repair = partial(made_again, name, values.digests)
    return content, arrays


def _open_array(folder: Path, artifact: Artifact, name: str) -> BlockArray:
    """An array of an artefact that was sealed with the digests of its blocks. Raises DamagedArtifact, OSError."""
    path, beside = folder / f"{name}{SUFFIX}", f"{name}{SUFFIX}{BLOCKS}"
    digests = read_sealed(folder, artifact, beside, limit=artifact.files[beside].bytes)
    try:
        with open(open_file(path, below=folder), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return BlockArray(np.frombuffer(data, np.uint8), digests)
    except (UnsafeFile, ValueError) as e:
        raise DamagedArtifact(folder, e.what if isinstance(e, UnsafeFile) else f"{path.name}: {e}") from e
