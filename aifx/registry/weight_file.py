"""A safetensors file of named arrays: written in a stream, with the same bytes for the same arrays, and memory-mapped.

The file is the length of a header, the header in JSON, and the bytes of all arrays
(https://huggingface.co/docs/safetensors). Its library writes from memory alone.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from aifx.checkpoint.faults import while_reading
from aifx.checkpoint.lanes import Lanes, add, as_hex, host_lanes, starts_of
from aifx.checkpoint.manifest import ArrayEntry, Damaged
from aifx.core.artifact import DamagedArtifact, SealedFile
from aifx.core.digests import Sha256
from aifx.core.errors import DataError
from aifx.core.files import open_file
from aifx.core.parsing import parse_json
from aifx.core.progress import Reporter

if TYPE_CHECKING:
    from aifx.checkpoint.stored import StoredArrays  # opens TensorStore

Array: TypeAlias = np.ndarray[Any, Any]

TYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype(np.complex64),
    "BOOL": np.dtype(np.bool_),
    **{f"{kind.upper()}{bits}": np.dtype(f"{kind}{bits // 8}") for kind in "iu" for bits in (64, 32, 16, 8)},
}
"""The types of arrays by safetensors' names."""

_NAMES = {dtype.name: name for name, dtype in TYPES.items()}

BLOCK_BYTES = 64 << 20
"""Of an array that is read at a time."""

PUSH_AGAIN = "aifx registry push RUN NAME, of the run that it was pushed from"

HELD_BLOCKS = 3
"""Blocks of arrays in memory: one is read while the others are digested and written."""


@dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint or of a model version, and its name in the file."""

    name: str
    stored: str  # its name there
    entry: ArrayEntry
    arrays: StoredArrays | StoredWeights = field(repr=False)
    folder: Path  # of the checkpoint or the model version


def write_weights(path: Path, arrays: Iterable[StoredArray], progress: Reporter) -> SealedFile:
    """Write arrays of checkpoints to a new file, which survives a loss of power. Memory holds HELD_BLOCKS.

    Raises Damaged if an array has other bytes than the manifest of its checkpoint says, DataError for a type that
    safetensors does not have, OSError.
    """
    # The largest elements first, so that each array begins at a multiple of its element's size.
    ordered = sorted(arrays, key=lambda array: (-np.dtype(array.entry.dtype).itemsize, array.name))
    head, digest, size = _header(ordered), Sha256(), 0
    one = partial(ThreadPoolExecutor, 1)
    with open(path, "xb") as file, one() as hashing, one() as flushing, ThreadPoolExecutor(2) as mixing:
        hashed = deque([hashing.submit(digest.update, head)])
        flushed, unflushed = flushing.submit(os.fdatasync, file.fileno()), 0
        size += file.write(head)
        for array in ordered:
            lanes = list[Future[Lanes]]()
            for starts, block in _blocks(array):
                lanes.append(mixing.submit(host_lanes, block, starts, array.entry.shape))
                data = memoryview(block.reshape(-1).view(np.uint8))
                hashed.append(hashing.submit(digest.update, data))
                size += file.write(data)
                unflushed += data.nbytes
                progress.advance(data.nbytes)
                if unflushed >= BLOCK_BYTES and flushed.done():  # the disk writes while the next blocks are read
                    flushed.result()
                    flushed, unflushed = flushing.submit(os.fdatasync, file.fileno()), 0
                if len(hashed) > 1:
                    hashed.popleft().result()
                if len(lanes) > 1:
                    lanes[-2].result()
            if as_hex(add(part.result() for part in lanes)) != array.entry.digest:
                what = f"checkpoint {array.folder} is damaged"
                raise Damaged(what, f"bytes differ from what was saved: {array.stored}", "aifx ckpt verify")
        file.flush()
        flushed.result()
        os.fsync(file.fileno())
        for future in hashed:
            future.result()
    return SealedFile(size, digest.hexdigest())


def _header(arrays: Iterable[StoredArray]) -> bytes:
    head: dict[str, Any] = {}
    end = 0
    for array in arrays:
        dtype = np.dtype(array.entry.dtype)
        if dtype.name not in _NAMES:
            why = f"safetensors has no type for {dtype.name}"
            raise DataError(f"{array.stored} of {array.folder} cannot be stored", why, "use another type of arrays")
        start, end = end, end + array.entry.size * dtype.itemsize
        head[array.name] = {
            "dtype": _NAMES[dtype.name],
            "shape": list(array.entry.shape),
            "data_offsets": [start, end],
        }
    data = json.dumps(head, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _blocks(array: StoredArray) -> Iterator[tuple[tuple[int, ...], Array]]:
    """The blocks of an array in order: where each begins, and its elements as they lie in the file."""
    pending = deque[tuple[tuple[int, ...], Any]]()

    def read(starts: tuple[int, ...], future: Any) -> tuple[tuple[int, ...], Array]:
        block = np.asarray(future.result(), order="C")
        return starts, block.astype(block.dtype.newbyteorder("<"), copy=False) if block.dtype.kind != "V" else block

    try:
        for index in array.arrays.blocks(array.stored):
            pending.append((starts_of(index, len(array.entry.shape)), array.arrays.read(array.stored, index)))
            if len(pending) > 1:
                yield read(*pending.popleft())
        while pending:
            yield read(*pending.popleft())
    except GeneratorExit:
        raise
    except Exception as error:
        raise while_reading(error, array.folder) from error


@dataclass(frozen=True)
class StoredWeights:
    """The arrays of a file of weights, read as `StoredArrays` reads those of a checkpoint."""

    file: WeightFile

    def read(self, name: str, index: tuple[slice, ...]) -> Future[Array]:
        found = Future[Array]()
        found.set_result(self.file.read(name)[index])
        return found

    def blocks(self, name: str) -> Iterator[tuple[slice, ...]]:
        """The indices of blocks of about BLOCK_BYTES that together are an array."""
        whole = self.file.read(name)
        if not whole.shape:
            yield ()
            return
        rows = max(BLOCK_BYTES * whole.shape[0] // max(whole.nbytes, 1), 1)
        for start in range(0, whole.shape[0], rows):
            yield slice(start, min(start + rows, whole.shape[0])), *(slice(0, size) for size in whole.shape[1:])


@dataclass(frozen=True)
class WeightFile:
    """The arrays of a file that `write_weights` wrote. Nothing is compared with a digest."""

    path: Path

    @cached_property
    def _head(self) -> tuple[int, dict[str, Any]]:
        try:
            with open(open_file(self.path, below=self.path.parent), "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > os.fstat(file.fileno()).st_size:
                    raise ValueError("its header is longer than the file")
                return 8 + length, parse_json(file.read(length))
        except (ValueError, FileNotFoundError) as error:
            raise DamagedArtifact(self.path.parent, f"{self.path.name}: {error}", PUSH_AGAIN) from error

    @cached_property
    def _data(self) -> Array:
        start, _ = self._head
        data: Array = np.memmap(self.path, np.uint8, mode="r", offset=0)[start:]
        return data

    def read(self, name: str) -> Array:
        """An array whose memory is the file. Raises DamagedArtifact if it is missing or changed."""
        try:
            entry = self._head[1][name]
            start, end = entry["data_offsets"]
            found: Array = self._data[start:end].view(TYPES[entry["dtype"]]).reshape(entry["shape"])
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise DamagedArtifact(self.path.parent, f"{self.path.name}: array {name}: {error}", PUSH_AGAIN) from error
        return found
