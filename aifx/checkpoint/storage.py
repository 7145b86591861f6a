"""Arrays on disk through TensorStore, and from there to the devices that a program wants them on.

`state/` is a key-value store (OCDBT) that holds each array as zarr under its name, in chunks that no two processes
share. With several processes, each writes a store of its own in `state/process_<i>/`; process 0 then makes `state/`
refer to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import Sharding, SingleDeviceSharding

from aifx.checkpoint.capture import HostArray
from aifx.checkpoint.digest import is_key
from aifx.checkpoint.manifest import ArrayEntry, Manifest
from aifx.checkpoint.stored import StoredArrays, kvstore
from aifx.core.errors import CheckpointError

CHUNK_BYTES = 32 << 20
"""A chunk is read whole, so its size bounds what a process reads beyond what it needs.

TensorStore writes a chunk without copying it if its bytes lie together in memory, as those of a whole array do.
"""


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
        store = {**kvstore(folder, will_write=True), "path": f"{name}/"}
        spec = {"driver": "zarr", "kvstore": store, "metadata": metadata, "store_data_equal_to_fill_value": True}
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
    target = ts.KvStore.open(kvstore(state, will_write=True), context=context).result()
    for index in range(count):
        source = ts.KvStore.open(kvstore(process_folder(state, index, count)), context=context).result()
        source.experimental_copy_range_to(target.with_transaction(transaction)).result()
    transaction.commit_async().result()


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


GROUP_BYTES = 32 << 20
"""Arrays that are in the host's memory together, beside as many that are read ahead.

Memory that is used again is much cheaper than fresh memory.
"""

_KEY_IMPLEMENTATIONS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}
"""jax.random.wrap_key_data's names by the tag in a key's dtype ("key<fry>")."""


def check_fit(folder: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint has exactly `wanted` (shapes and dtypes by name).

    Parts under other top-level names are ignored, so that the parameters can be read without the rest.
    """
    tops = {name.split("/")[0] for name in wanted}
    there = {n: (e.shape, e.dtype) for n, e in manifest.arrays.items() if n.split("/")[0] in tops}
    asked = {name: _signature(leaf) for name, leaf in wanted.items()}
    wrong = [f"{n} is not in it" for n in asked.keys() - there.keys()]
    wrong += [f"{n} is in it only" for n in there.keys() - asked.keys()]
    both = asked.keys() & there.keys()
    wrong += [f"{n} is {_formatted(there[n])}, not {_formatted(asked[n])}" for n in both if asked[n] != there[n]]
    if wrong:
        more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"checkpoint {folder} does not fit the model",
            "; ".join(sorted(wrong)[:3]) + more,
            "aifx config show    (the run's own configuration is in its config.toml)",
        )


def read_placed(
    stored: StoredArrays,
    entries: Mapping[str, ArrayEntry],
    wanted: Mapping[str, Any],
    on_placed: Callable[[str, jax.Array], None],
) -> dict[str, jax.Array]:
    """Arrays of a checkpoint with the shardings of `wanted`, not verified; typed keys as their data.

    Each part is read once, and put on the devices of this process that need it. `on_placed` gets each array
    while the next ones are read.
    """
    placed: dict[str, jax.Array] = {}
    plans = {name: _plan(entries[name], leaf) for name, leaf in wanted.items()}

    def start(names: Sequence[str]) -> list[tuple[_Part, Any]]:
        return [(part, stored.read(name, part.index)) for name in names for part in plans[name].parts]

    groups = list(_groups(plans))
    started = start(groups[0]) if groups else []
    for number, names in enumerate(groups):
        reads, started = started, start(groups[number + 1]) if number + 1 < len(groups) else []
        parts, targets = [], []
        for part, read in reads:
            data = read.result()
            parts += [data] * len(part.targets)
            targets += part.targets
        del reads
        found = iter(jax.device_put(parts, targets))
        for name in names:
            plan = plans[name]
            on_devices = [next(found) for part in plan.parts for _ in part.targets]
            if plan.sharding is None:
                placed[name] = on_devices[0]
            else:
                placed[name] = jax.make_array_from_single_device_arrays(plan.shape, plan.sharding, on_devices)
            on_placed(name, placed[name])
    return placed


def with_keys(arrays: Mapping[str, jax.Array], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of `wanted`, typed keys wrapped again."""
    found: dict[str, Any] = dict(arrays)
    for name in [name for name in arrays if is_key(wanted[name])]:
        tag = str(wanted[name].dtype).removeprefix("key<").removesuffix(">")
        key = jax.random.wrap_key_data(arrays[name], impl=_KEY_IMPLEMENTATIONS.get(tag, tag))
        found[name] = jax.device_put(key, getattr(wanted[name], "sharding", None))
    return found


@dataclass(frozen=True)
class _Part:
    """A part of an array that this process reads, and the places that it is put in."""

    index: tuple[slice, ...]
    targets: list[Any]  # shardings of one device each, or None for the default device
    num_bytes: int


@dataclass(frozen=True)
class _Plan:
    """The plan by which an array is read. Without a sharding it is put on the default device."""

    shape: tuple[int, ...]
    sharding: Sharding | None
    parts: list[_Part]


def _plan(entry: ArrayEntry, leaf: Any) -> _Plan:
    sharding = None if is_key(leaf) else getattr(leaf, "sharding", None)
    itemsize = np.dtype(entry.dtype).itemsize
    if sharding is None:
        everything = tuple(slice(0, size) for size in entry.shape)
        return _Plan(entry.shape, None, [_Part(everything, [None], entry.size * itemsize)])
    parts: dict[tuple[tuple[int, int, int], ...], _Part] = {}
    for device, index in sharding.addressable_devices_indices_map(entry.shape).items():
        bounds = tuple(part.indices(size) for part, size in zip(index, entry.shape, strict=True))
        num_bytes = math.prod(stop - start for start, stop, _ in bounds) * itemsize
        part = parts.setdefault(bounds, _Part(tuple(slice(start, stop) for start, stop, _ in bounds), [], num_bytes))
        part.targets.append(SingleDeviceSharding(device, memory_kind=sharding.memory_kind))
    return _Plan(entry.shape, sharding, list(parts.values()))


def _groups(plans: Mapping[str, _Plan]) -> Iterator[list[str]]:
    """The names in groups, so that the host holds about GROUP_BYTES at a time."""
    group: list[str] = []
    size = 0
    for name, plan in plans.items():
        group.append(name)
        size += sum(part.num_bytes for part in plan.parts)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _signature(leaf: Any) -> tuple[tuple[int, ...], str]:
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return tuple(data.shape), np.dtype(data.dtype).name


def _formatted(signature: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = signature
    return f"{dtype}[{', '.join(map(str, shape))}]"
