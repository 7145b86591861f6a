"""Collectives among the devices of many processes through JAX: NCCL on NVIDIA GPUs, ICI on TPUs, Gloo on CPUs."""

from __future__ import annotations

import logging
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aifx.health.collective_tcp import Place

logger = logging.getLogger(__name__)


def measure(place: Place, collective: str, num_bytes: int, repeats: int) -> tuple[list[list[float]], list[bool], int]:
    """As `aifx.health.collective_tcp.measure`, with the number of devices. `num_bytes` is the buffer of a device."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        "{}:{}".format(*place.coordinator),
        place.size,
        place.rank,
        initialization_timeout=max(int(place.left_s("for the others")), 1),
    )
    try:
        logger.info(f"rank {place.rank}: {len(jax.devices())} {jax.devices()[0].device_kind}")
        times, right = _measure(place, collective, num_bytes, repeats)
        gathered = multihost_utils.process_allgather(np.array([*times, float(right)], np.float32))
        return gathered[:, :-1].tolist(), [bool(one) for one in gathered[:, -1]], len(jax.devices())
    finally:
        jax.distributed.shutdown()


def _measure(place: Place, collective: str, num_bytes: int, repeats: int) -> tuple[list[float], bool]:
    devices = np.array(jax.devices())
    size = len(devices)
    count = max(num_bytes // 4 // size, 1) * size
    mesh = Mesh(devices, ("devices",))
    sharding = NamedSharding(mesh, PartitionSpec("devices"))
    spec = PartitionSpec("devices")

    def operation(x: Any) -> Any:
        if collective == "all_to_all":
            return lax.all_to_all(x, "devices", split_axis=1, concat_axis=1, tiled=True)
        return jnp.broadcast_to(lax.psum(x, "devices"), x.shape)

    run = jax.jit(jax.shard_map(operation, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    # Whole numbers below 2^24: float32 adds them exactly, in any order.
    values = np.arange(size)[:, None] * size + np.arange(count)[None] // (count // size)
    x = jax.make_array_from_callback(
        (size, count), sharding, lambda where: values[where].astype(np.float32)
    ).block_until_ready()
    wanted = (
        (np.arange(count)[None] // (count // size)) * size + np.arange(size)[:, None]
        if collective == "all_to_all"
        else np.broadcast_to(values.sum(0, keepdims=True), values.shape)
    )
    delay = max(place.delays_s.values(), default=0.0)
    times, right = [], True
    for _ in range(repeats + 1):
        multihost_utils.sync_global_devices("aifx")
        began = time.perf_counter()
        time.sleep(delay)
        y = run(x).block_until_ready()
        times.append(time.perf_counter() - began)
    for shard in y.addressable_shards:
        right = right and bool(np.array_equal(np.asarray(shard.data), wanted[shard.index].astype(np.float32)))
    return times[1:], right
