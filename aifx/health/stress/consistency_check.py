"""Check for silent corruption: run one seeded program on every device at once, and hash its outputs on the device.

One executable serves all devices, so equal devices must give equal bits. Programs of whole numbers are also compared
with NumPy, which checks a device without an equal one. This imports JAX, so only the child process may import it.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from packaging.utils import canonicalize_name

from aifx.core.digests import sha256_of
from aifx.health.host import Host
from aifx.health.probing import text_of
from aifx.machine.cpu import cpu_flags, cpu_model, usable_cpus
from aifx.machine.microbenchmarks import name_of

SEED = 0x5EED
Hashes: TypeAlias = dict[str, dict[str, list[str]]]
"""By device and program, one per run."""

Programs: TypeAlias = Callable[[int, jax.Array], dict[str, jax.Array]]
"""Computes outputs by name, from a size and a seed."""

SWITCHES = re.compile(r"XLA_FLAGS|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE|JAX_DEFAULT_MATMUL_PRECISION|(PJRT_)?NPROC")
COMPUTES = re.compile(r"jax|libtpu|nvidia-(?!ml-py)")


def _mixed(x: Any) -> Any:
    """Apply Murmur3's finalizer to uint32: each input bit changes about half of the output. NumPy or JAX arrays."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _bits(count: int, seed: Any, xp: Any) -> Any:
    return _mixed(xp.arange(count, dtype=np.uint32) * np.uint32(2654435761) + seed)


def _floats(size: int, seed: Any) -> jax.Array:
    """Return a matrix of float32 in [-1, 1) that use every bit of the mantissa."""
    bits = _bits(size * size, seed, jnp).reshape(size, size)
    return lax.bitcast_convert_type((bits >> 9) | np.uint32(0x40000000), jnp.float32) - 3.0


def _programs(size: int, seed: jax.Array) -> dict[str, jax.Array]:
    a, b = _floats(size, seed), _floats(size, seed + np.uint32(1))
    found = {}
    for dtype in ("float32", "bfloat16", "float16"):
        found[f"matmul {dtype}"] = lax.dot(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
    return found | {
        "matmul int8": lax.dot(*_whole(size, seed, jnp), preferred_element_type=jnp.int32),
        "exp": jnp.exp(a) * jnp.sin(b * 37.0),
        "exp bfloat16": (jnp.exp(a.astype(jnp.bfloat16)) * jnp.tanh(b.astype(jnp.bfloat16))).astype(jnp.float32),
        "sum": jnp.concatenate([a.sum(0), (a * b).sum(1), jnp.cumsum(a[0])]),
        "integers": _rounds(_bits(size * size, seed, jnp)),
        "sort": jnp.sort(_bits(size * 16, seed, jnp)),
    }


def _whole(size: int, seed: Any, xp: Any) -> tuple[Any, Any]:
    """Return two matrices of int8."""
    bits = (_bits(size * size, seed + np.uint32(number), xp).reshape(size, size) for number in (0, 1))
    a, b = ((part & np.uint32(0xFF)).astype(np.uint8).view(np.int8) for part in bits)
    return a, b


def _rounds(x: Any) -> Any:
    for _ in range(8):
        x = _mixed(x + np.uint32(0x9E3779B9))
    return x


def _hash(x: Any, xp: Any) -> Any:
    """Return 64 bits as two uint32, from wrapping sums, which are equal in any order."""
    bits = x.reshape(-1)
    if bits.dtype != np.uint32:
        bits = lax.bitcast_convert_type(bits, jnp.uint32) if xp is jnp else bits.view(np.uint32)
    place = xp.arange(bits.size, dtype=np.uint32)
    first, second = _mixed(bits ^ _mixed(place)), _mixed(bits * np.uint32(0x9E3779B1) + place)
    return xp.stack([first.sum(dtype=np.uint32), second.sum(dtype=np.uint32)])


def run(
    devices: list[Any], repeats: int, limit_s: float, programs: Programs = _programs
) -> tuple[Hashes, dict[str, str]]:
    """Return the hashes of each device, and the right ones of whole numbers. Raises TimeoutError that names the devices
    that did not finish within `limit_s`."""
    size = 256 if devices[0].platform == "cpu" else 2048
    step, names, seeds = _compiled(tuple(devices), size, programs)
    hashes: Hashes = {}
    for _ in range(repeats):
        for name, rows in _gathered(step(seeds), limit_s).items():
            for program, row in zip(names, rows, strict=True):
                hashes.setdefault(name, {}).setdefault(program, []).append(_text(row))
    return hashes, exact_hashes(size)


@functools.cache
def _compiled(
    devices: tuple[Any, ...], size: int, programs: Programs
) -> tuple[Callable[[jax.Array], jax.Array], list[str], jax.Array]:
    """Return the step, the programs' names once it was called, and its input. It is cached, because compiling again
    would let hot devices cool."""
    names: list[str] = []
    mesh, spec = Mesh(np.array(devices), ("d",)), PartitionSpec("d")

    def one(seed: jax.Array) -> jax.Array:
        found = programs(size, seed[0])
        names[:] = list(found)
        return jnp.stack([_hash(x, jnp) for x in found.values()])[None]

    options = {"xla_gpu_deterministic_ops": True} if devices[0].platform == "gpu" else None
    sharded = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    seeds = jax.device_put(np.full(len(devices), SEED, np.uint32), NamedSharding(mesh, spec))
    return jax.jit(sharded, compiler_options=options), names, seeds


@functools.cache
def exact_hashes(size: int) -> dict[str, str]:
    """Return the right hashes of the programs of whole numbers, by NumPy."""
    seed = np.uint32(SEED)
    with np.errstate(over="ignore"):
        a, b = (x.astype(np.int32) for x in _whole(size, seed, np))
        found = {
            "matmul int8": (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32),  # below 2**53: exact
            "integers": _rounds(_bits(size * size, seed, np)),
            "sort": np.sort(_bits(size * 16, seed, np)),
        }
        return {name: _text(_hash(x, np)) for name, x in found.items()}


def made_by(devices: list[Any]) -> str:
    """Return all that the bits may depend on: devices with the same text, on any nodes, must give equal hashes."""
    kinds = Counter(device.device_kind for device in devices)
    found = {canonicalize_name(d.metadata["Name"] or ""): d.version for d in metadata.distributions()}
    words = [f"{count} x {kind}" for kind, count in kinds.items()]
    words += [f"{name} {version}" for name, version in sorted(found.items()) if COMPUTES.match(name)]
    words += [f"{name}={value}" for name, value in sorted(os.environ.items()) if value and SWITCHES.fullmatch(name)]
    if devices[0].platform == "cpu":  # XLA's programs depend on its features and threads
        digest = sha256_of(" ".join(sorted(cpu_flags())))[:8]
        return "; ".join([*words, f"{len(usable_cpus())} threads of {cpu_model()} ({digest})"])
    driver = re.findall(r"Kernel Module.*?\s(\d[\d.]+)\s", text_of(Host(), "/proc/driver/nvidia/version"))
    return "; ".join([*words, *driver[:1]])


def _gathered(x: jax.Array, limit_s: float) -> dict[str, Any]:
    """Return each device's part. Raises TimeoutError."""
    until = time.monotonic() + limit_s
    shards = {name_of(s.device): s.data for s in x.addressable_shards}
    while late := [name for name, part in shards.items() if not part.is_ready()]:
        if time.monotonic() > until:
            raise TimeoutError(", ".join(late))
        time.sleep(0.002)
    return {name: np.asarray(part)[0] for name, part in shards.items()}


def _text(row: Any) -> str:
    return "".join(f"{int(word):08x}" for word in row)
