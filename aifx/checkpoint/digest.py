"""The additive digest of an array, which any way of dividing it gives, and the digest of a whole state.

docs/checkpoints.md defines both. Each 32-bit word of an array is mixed with its position in the whole array, and the
mixed words are summed, so parts that are digested on different devices add up to the digest of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import numpy as np

from aifx.checkpoint.lanes import FIRST, MASK, POSITION, SECOND, Lanes, add, as_hex, host_lanes, starts_of
from aifx.checkpoint.manifest import digest_of
from aifx.checkpoint.naming import Tree, flat_names
from aifx.checkpoint.peers import peers_of
from aifx.parallel.group import Group

_sharing = ThreadPoolExecutor(4, thread_name_prefix="aifx-digest")


def is_key(leaf: Any) -> bool:
    """Whether an array, or an abstract one, is a typed PRNG key."""
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def key_data(leaf: Any) -> Any:
    """A leaf of a state as an array; a typed PRNG key as its data."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def shard_lanes(data: Any, starts: Sequence[int], shape: Sequence[int]) -> Future[Lanes]:
    """The digest of one shard of an array of this shape, a `jax.Array` or one of NumPy, computed where the shard is.

    When this returns, the computation on an accelerator is queued, so that the array may be donated. On the CPU the
    array must stay until the result is there.
    """
    if not isinstance(data, jax.Array) or is_on_host(data):
        return _sharing.submit(host_lanes, np.asarray(data), starts, shape)
    strides = [math.prod(shape[axis + 1 :]) & MASK for axis in range(len(shape))]
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


def is_on_host(array: jax.Array) -> bool:
    """Whether all of an array is in the memory of CPU devices."""
    devices: set[Any] = array.sharding.device_set
    return all(device.platform == "cpu" for device in devices)


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
        keys *= jnp.uint32(POSITION)
        mixed = words ^ keys
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(FIRST)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(SECOND)
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
