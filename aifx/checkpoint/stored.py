"""The arrays of a checkpoint on disk, read through TensorStore. It needs no JAX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from aifx.checkpoint.manifest import STATE, ArrayEntry, Damaged

DATA_FILE_BYTES = 64 << 20
"""About the size of a file of arrays. Several are written, flushed and digested at a time."""

BLOCK_BYTES = 64 << 20
"""About as much of an array as a command that reads all of it holds at a time."""


class StoredArrays:
    """The arrays of a checkpoint, as they are on disk: nothing is verified. Raises what TensorStore raises."""

    def __init__(self, folder: Path, arrays: Mapping[str, ArrayEntry]) -> None:
        self._arrays = arrays
        context, store = ts.Context(), kvstore(folder / STATE)
        specs = {
            name: {"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}
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


def kvstore(folder: Path, *, will_write: bool = False) -> dict[str, Any]:
    """TensorStore's description of the key-value store in a folder."""
    # What is written is flushed later, file by file, with errors that name the file.
    base = {"driver": "file", "path": f"{folder}/", "file_io_sync": False}
    found: dict[str, Any] = {"driver": "ocdbt", "base": base}
    if will_write:
        found["config"] = {
            "max_inline_value_bytes": 1024,
            "max_decoded_node_bytes": 100_000_000,  # one node, which is the quickest to read
            "manifest_kind": "single",
        }
        found["assume_config"] = True  # no other process writes to this store
        found["target_data_file_size"] = DATA_FILE_BYTES
    return found
