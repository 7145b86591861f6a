"""The additive digest of an array, which any way of dividing it gives, and the digest of a whole state.

docs/checkpoints.md defines both. Each 32-bit word of an array is mixed with its position in the whole array, and the
mixed words are summed, so parts that are digested on different devices add up to the digest of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeAlias

import jax
import numpy as np

from aifx.checkpoint.manifest import digest_of
from aifx.checkpoint.naming import Tree, flat_names
from aifx.checkpoint.peers import peers_of
from aifx.parallel.group import Group

Lanes: TypeAlias = tuple[int, int]
"""Two sums of mixed words, modulo 2^32 each."""

NOTHING: Lanes = (0, 0)

_POSITION = 0x9E3779B1  # 2^32 divided by the golden ratio, made odd
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97  # the multipliers of the hash `lowbias32` (C. Wellons, hash-prospector)
_MASK = 0xFFFFFFFF
_BLOCK_WORDS = 1 << 16  # three blocks of this size stay in a core's cache

_sharing = ThreadPoolExecutor(4, thread_name_prefix="aifx-digest")


def is_key(leaf: Any) -> bool:
    """Whether an array, or an abstract one, is a typed PRNG key."""
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def key_data(leaf: Any) -> Any:
    """A leaf of a state as an array; a typed PRNG key as its data."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def add(parts: Iterable[Lanes]) -> Lanes:
    """The digest of what consists of parts with these digests."""
    first, second = 0, 0
    for part in parts:
        first, second = first + part[0], second + part[1]
    return first & _MASK, second & _MASK


def as_hex(lanes: Lanes) -> str:
    """The digest as 16 hexadecimal digits."""
    return f"{lanes[0]:08x}{lanes[1]:08x}"


def host_lanes(part: np.ndarray[Any, Any], starts: Sequence[int] = (), shape: Sequence[int] | None = None) -> Lanes:
    """The digest of a part of an array that is in the host's memory.

    Args:
        starts: where the part begins in the whole array, by axis; by default the part is the whole.
        shape: of the whole array.
    """
    if not part.size:
        return NOTHING
    shape = part.shape if shape is None else shape
    words, per_element = _words(part)
    rows, columns = _contiguous(part.shape, shape)
    keys = (_row_positions(part.shape[:rows], starts or (0,) * part.ndim, shape) * per_element).astype(np.uint32)
    table = words.reshape(len(keys), columns * per_element)
    num_rows = max(_BLOCK_WORDS // table.shape[1], 1)
    first, second = 0, 0
    for row in range(0, len(keys), num_rows):
        for column in range(0, table.shape[1], _BLOCK_WORDS):
            block = table[row : row + num_rows, column : column + _BLOCK_WORDS]
            positions = keys[row : row + num_rows, None] + np.uint32(column)
            lanes = _mixed(block, positions)
            first, second = first + lanes[0], second + lanes[1]
    return first & _MASK, second & _MASK


def shard_lanes(data: Any, starts: Sequence[int], shape: Sequence[int]) -> Future[Lanes]:
    """The digest of one shard of an array of this shape, a `jax.Array` or one of NumPy, computed where the shard is.

    When this returns, the computation on an accelerator is queued, so that the array may be donated. On the CPU the
    array must stay until the result is there.
    """
    if not isinstance(data, jax.Array) or is_on_host(data):
        return _sharing.submit(host_lanes, np.asarray(data), starts, shape)
    strides = [math.prod(shape[axis + 1 :]) & _MASK for axis in range(len(shape))]
    queued = _on_device()(data, np.array(starts, np.uint32), np.array(strides, np.uint32))
    return _sharing.submit(lambda: (int(queued[0]), int(queued[1])))


def state_digest(tree: Tree, peers: Group | None = None) -> str:
    """The digest of a state's arrays.

    All processes of a job call it together, and all get the same digest.

    Args:
        peers: the processes of the job; by default those that JAX knows.
    """
    peers = peers or peers_of("state digest")
    leaves = {name: key_data(leaf) for name, leaf in flat_names(tree).items()}
    shards = {name: own_shards(leaf, is_first=peers.is_first) for name, leaf in leaves.items()}
    futures = {n: [shard_lanes(data, starts, leaves[n].shape) for starts, data in own] for n, own in shards.items()}
    own = {name: add(future.result() for future in parts) for name, parts in futures.items()}
    found = peers.gather(own)
    if not peers.is_first:
        return str(peers.broadcast(None))
    sums = {name: as_hex(add(lanes[name] for lanes in found)) for name in leaves}
    return str(peers.broadcast(digest_of((n, leaf.dtype.name, leaf.shape, sums[n]) for n, leaf in leaves.items())))


def array_digests(tree: Tree) -> dict[str, str]:
    """The digest of each array of a state that this process holds whole, by name."""
    leaves = {name: key_data(leaf) for name, leaf in flat_names(tree).items()}
    shards = {name: list(own_shards(leaf, is_first=True)) for name, leaf in leaves.items()}
    futures = {n: [shard_lanes(data, starts, leaves[n].shape) for starts, data in own] for n, own in shards.items()}
    return {name: as_hex(add(future.result() for future in parts)) for name, parts in futures.items()}


def own_shards(array: Any, *, is_first: bool) -> Iterator[tuple[tuple[int, ...], Any]]:
    """The shards of an array that this process saves and digests: where each begins, and its data.

    Each shard belongs to the process that has its first copy. An array that lies in one process is the same in all of
    them, and process 0 (`is_first`) takes it.
    """
    if not isinstance(array, jax.Array) or len(array.sharding.device_set) == 1:  # the usual case, without its shards
        if is_first:
            yield (0,) * array.ndim, array
    elif is_first or not array.is_fully_addressable:
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                yield starts_of(shard.index, array.ndim), shard.data


def starts_of(index: tuple[slice, ...], ndim: int) -> tuple[int, ...]:
    """Where the part that `index` selects begins, by axis."""
    return tuple(part.start or 0 for part in index) if ndim else ()


def is_on_host(array: jax.Array) -> bool:
    """Whether all of an array is in the memory of CPU devices."""
    devices: set[Any] = array.sharding.device_set
    return all(device.platform == "cpu" for device in devices)


def _words(part: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """The elements in C order as unsigned numbers of at most 32 bits, and how many of them make an element."""
    flat = np.ascontiguousarray(part).reshape(-1)
    if flat.dtype.byteorder == ">" or (flat.dtype.byteorder == "=" and not np.little_endian):
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    size = flat.dtype.itemsize
    return flat.view(f"<u{min(size, 4)}"), max(size // 4, 1)


def _contiguous(part: Sequence[int], shape: Sequence[int]) -> tuple[int, int]:
    """The number of leading axes of a part to count through, and the elements of its runs that have no gap."""
    axis, columns = len(part), 1
    while axis:
        axis -= 1
        columns *= part[axis]
        if part[axis] != shape[axis]:
            break
    return axis, columns


def _row_positions(leading: Sequence[int], starts: Sequence[int], shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """The position in the whole array of the first element of each run, uint64 `[runs]`."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    begin = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    positions = np.full((), begin, np.uint64)
    for size, stride in zip(leading, strides, strict=False):
        positions = positions[..., None] + np.arange(size, dtype=np.uint64) * np.uint64(stride)
    return positions.reshape(-1)


def _mixed(words: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> Lanes:
    """The sums over `words`, `[rows, columns]`, of which each row begins at one of `positions`, `[rows, 1]`."""
    keys = positions * np.uint32(_POSITION) + _column_keys()[: words.shape[1]]
    mixed = words ^ keys  # uint32, and fresh memory: the rest is done in place, which is twice as fast
    scratch = mixed >> np.uint32(16)
    mixed ^= scratch
    mixed *= np.uint32(_FIRST)
    np.right_shift(mixed, np.uint32(15), out=scratch)
    mixed ^= scratch
    mixed *= np.uint32(_SECOND)
    np.right_shift(mixed, np.uint32(15), out=scratch)
    mixed ^= scratch
    first = int(mixed.sum(dtype=np.uint32))
    keys += keys
    keys |= np.uint32(1)
    mixed *= keys
    np.right_shift(mixed, np.uint32(16), out=scratch)
    mixed ^= scratch
    return first, int(mixed.sum(dtype=np.uint32))


@cache
def _column_keys() -> np.ndarray[Any, Any]:
    return np.arange(_BLOCK_WORDS, dtype=np.uint32) * np.uint32(_POSITION)


@cache
def _on_device() -> Any:
    """The same for a shard on a device: (data, starts by axis, elements by axis) to both lanes."""
    jnp, lax = jax.numpy, jax.lax

    def lanes(data: jax.Array, starts: jax.Array, strides: jax.Array) -> tuple[jax.Array, jax.Array]:
        words = _device_words(data)
        per_element = words.shape[-1]
        keys = lax.broadcasted_iota(jnp.uint32, words.shape, data.ndim)
        for axis in range(data.ndim):
            place = lax.broadcasted_iota(jnp.uint32, words.shape, axis) + starts[axis]
            keys += place * strides[axis] * jnp.uint32(per_element)
        keys *= jnp.uint32(_POSITION)
        mixed = words ^ keys
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(_FIRST)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(_SECOND)
        mixed ^= mixed >> 15
        other = mixed * (keys + keys + 1)
        return mixed.sum(dtype=jnp.uint32), (other ^ (other >> 16)).sum(dtype=jnp.uint32)

    return jax.jit(lanes)


def _device_words(data: jax.Array) -> jax.Array:
    """The elements as uint32 `[..., words of an element]`."""
    jnp = jax.numpy
    if jnp.issubdtype(data.dtype, jnp.complexfloating):
        parts = jnp.stack([data.real, data.imag], axis=-1)
        return jax.lax.bitcast_convert_type(parts, jnp.uint32).reshape(*data.shape, data.dtype.itemsize // 4)
    if data.dtype == jnp.bool_:
        data = data.astype(jnp.uint8)
    size = data.dtype.itemsize
    words = jax.lax.bitcast_convert_type(data, f"uint{8 * min(size, 4)}").astype(jnp.uint32)
    return words if words.ndim > data.ndim else words[..., None]
