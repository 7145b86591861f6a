"""All-to-alls among the devices of many processes through JAX: NCCL on NVIDIA GPUs, ICI on TPUs, Gloo on CPUs."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aifx.health.collective_tcp import CollectiveError, RankRequest


def measure(request: RankRequest) -> tuple[list[list[float]], list[bool], int]:
    """As `aifx.health.collective_tcp.measure`, with the number of devices."""
    if request.left_s <= 0:
        raise CollectiveError(f"rank {request.rank} had no time left to start JAX")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = f"[{request.host}]" if ":" in request.host else request.host
    coordinator, timeout_s = f"{host}:{request.port}", max(int(request.left_s), 1)
    jax.distributed.initialize(coordinator, request.size, request.rank, initialization_timeout=timeout_s)
    try:
        times, right = _measure(request)
        gathered = multihost_utils.process_allgather(np.array([*times, float(right)], np.float32))
        return gathered[:, :-1].tolist(), [bool(one) for one in gathered[:, -1]], len(jax.devices())
    finally:
        jax.distributed.shutdown()


def _measure(request: RankRequest) -> tuple[list[float], bool]:
    devices = np.array(jax.devices())
    size = len(devices)
    count = max(request.num_bytes // 4 // size, 1) * size
    mesh, spec = Mesh(devices, ("devices",)), PartitionSpec("devices")

    def exchange(x: Any) -> Any:
        return lax.all_to_all(x, "devices", split_axis=1, concat_axis=1, tiled=True)

    run = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    # Whole numbers below 2^24, which float32 holds exactly.
    receivers, senders = np.arange(count)[None] // (count // size), np.arange(size)[:, None]
    values = (senders * size + receivers).astype(np.float32)
    wanted = (receivers * size + senders).astype(np.float32)
    x = jax.make_array_from_callback((size, count), NamedSharding(mesh, spec), lambda where: values[where])
    x.block_until_ready()
    delay_s = max((seconds for _, seconds in request.delays_s), default=0.0)
    times = []
    for _ in range(request.repeats + 1):
        multihost_utils.sync_global_devices("aifx")
        began = time.perf_counter()
        time.sleep(delay_s)
        y = run(x).block_until_ready()
        times.append(time.perf_counter() - began)
    right = all(np.array_equal(np.asarray(shard.data), wanted[shard.index]) for shard in y.addressable_shards)
    return times[1:], right
