"""Arrays on disk through TensorStore. Everything here blocks.

`state/` is a key-value store (OCDBT) that holds each array as zarr under its name, in chunks that no two processes
share. With several processes, each writes a store of its own in `state/process_<i>/`; process 0 then makes `state/`
refer to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from aifx.checkpoint.capture import HostArray
from aifx.checkpoint.manifest import STATE, ArrayEntry, Damaged

CHUNK_BYTES = 32 << 20
"""A chunk is read whole, so its size bounds what a process reads beyond what it needs.

TensorStore writes a chunk without copying it if its bytes lie together in memory, as those of a whole array do.
"""

DATA_FILE_BYTES = 64 << 20
"""About the size of a file of arrays. Several are written, flushed and digested at a time."""

BLOCK_BYTES = 64 << 20
"""About as much of an array as a command that reads all of it holds at a time."""


def process_folder(state: Path, index: int, count: int) -> Path:
    """Where process `index` of `count` writes its arrays."""
    return state / f"process_{index}" if count > 1 else state


def write_arrays(folder: Path, arrays: Mapping[str, HostArray]) -> None:
    """Write the parts of this process to a store in `folder`. The arrays must not change until this returns."""
    if not folder.exists():
        folder.mkdir()
    context, transaction = ts.Context(), ts.Transaction()
    mine = {name: array for name, array in arrays.items() if array.parts and array.num_bytes}
    opened = {}
    for name, array in mine.items():
        metadata = {
            "zarr_format": 2,
            "shape": array.shape,
            "chunks": chunk_shape(array),
            "dtype": array.dtype.name if array.dtype.kind == "V" else array.dtype.newbyteorder("<").str,
            # Trained weights hardly compress (8 % by zstd), and the cores it takes are the training's.
            "compressor": None,
            "filters": None,
            "fill_value": None,
            "order": "C",
            "dimension_separator": ".",
        }
        kvstore = {**_kvstore(folder, will_write=True), "path": f"{name}/"}
        spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata, "store_data_equal_to_fill_value": True}
        opened[name] = ts.open(spec, create=True, context=context, transaction=transaction)
    pending = [
        opened[name].result()[part.index].write(part.data, can_reference_source_data_indefinitely=True)
        for name, array in mine.items()
        for part in array.parts
    ]
    # Each one to its end, also after a failure: nothing may write into a folder that is being removed.
    failures = [e for e in [write.copy.exception() for write in pending] if e is not None]
    if failures:
        transaction.abort()
        raise failures[0]
    transaction.commit_async().result()


def merge(state: Path, count: int) -> None:
    """Make the store in `state` refer to those of `count` processes."""
    if count == 1:
        return
    context, transaction = ts.Context(), ts.Transaction(atomic=True)
    target = ts.KvStore.open(_kvstore(state, will_write=True), context=context).result()
    for index in range(count):
        source = ts.KvStore.open(_kvstore(process_folder(state, index, count)), context=context).result()
        source.experimental_copy_range_to(target.with_transaction(transaction)).result()
    transaction.commit_async().result()


class StoredArrays:
    """The arrays of a checkpoint, as they are on disk: nothing is verified. Raises what TensorStore raises."""

    def __init__(self, folder: Path, arrays: Mapping[str, ArrayEntry]) -> None:
        self._arrays = arrays
        context, kvstore = ts.Context(), _kvstore(folder / STATE)
        specs = {
            name: {"driver": "zarr", "kvstore": {**kvstore, "path": f"{name}/"}}
            for name, entry in arrays.items()
            if entry.size
        }
        self._opening = {name: ts.open(spec, open=True, read=True, context=context) for name, spec in specs.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> Any:
        """A future of the part of an array that `index` selects, a NumPy array."""
        entry = self._arrays[name]
        if not entry.size:
            shape = [len(range(*part.indices(size))) for part, size in zip(index, entry.shape, strict=True)]
            return ts.Future(np.zeros(shape, np.dtype(entry.dtype)))
        return self._store(name)[index].read()

    def blocks(self, name: str) -> Iterator[tuple[slice, ...]]:
        """The indices of blocks of about BLOCK_BYTES that together are an array: whole chunks along its first axis."""
        entry = self._arrays[name]
        if not entry.shape:
            yield ()
            return
        row_bytes = max(entry.size // max(entry.shape[0], 1), 1) * np.dtype(entry.dtype).itemsize
        chunk = int(self._store(name).chunk_layout.read_chunk.shape[0]) if entry.size else 1
        rows = max(BLOCK_BYTES // (row_bytes * chunk), 1) * chunk
        rest = tuple(slice(0, size) for size in entry.shape[1:])
        for start in range(0, entry.shape[0], rows):
            yield slice(start, min(start + rows, entry.shape[0])), *rest

    def _store(self, name: str) -> Any:
        entry, stored = self._arrays[name], self._opening[name].result()
        if stored.shape != entry.shape or stored.dtype.numpy_dtype != np.dtype(entry.dtype):
            raise Damaged(f"array {name}", f"{name} has another shape or dtype than its manifest says")
        return stored


def chunk_shape(array: HostArray) -> list[int]:
    """The chunks of an array: its parts, divided along the longest axis until a chunk has at most CHUNK_BYTES.

    Chunks that are short along each axis can be read for another mesh with little beyond what it needs. No chunk
    reaches from one part into the next. If that forbids small chunks (parts of a prime size), they are larger.
    """
    shape = [max(size, 1) for size in array.part_shape]
    while math.prod(shape) * array.dtype.itemsize > CHUNK_BYTES:
        for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
            if array.part_shape[axis] == array.shape[axis] and shape[axis] > 1:
                shape[axis] = -(-shape[axis] // 2)
                break
            if factor := next((f for f in (2, 3, 5, 7) if shape[axis] % f == 0), None):
                shape[axis] //= factor
                break
        else:
            break
    return shape


def _kvstore(folder: Path, *, will_write: bool = False) -> dict[str, Any]:
    # What is written is flushed later, file by file, with errors that name the file.
    base = {"driver": "file", "path": f"{folder}/", "file_io_sync": False}
    kvstore: dict[str, Any] = {"driver": "ocdbt", "base": base}
    if will_write:
        kvstore["config"] = {
            "max_inline_value_bytes": 1024,
            "max_decoded_node_bytes": 100_000_000,  # one node, which is the quickest to read
            "manifest_kind": "single",
        }
        kvstore["assume_config"] = True  # no other process writes to this store
        kvstore["target_data_file_size"] = DATA_FILE_BYTES
    return kvstore
