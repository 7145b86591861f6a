"""Programs that load one part of the hardware and whose results are known: what `aifx bench hardware` times and
`aifx doctor --stress` both times and judges. Imports JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

GPU_DTYPES = ("bfloat16", "float16", "float32", "int8", "float8_e4m3fn")
CPU_DTYPES = ("float32", "bfloat16", "float16", "int8")

USUAL_PRODUCT = {"cpu": (1024, 1), "accelerator": (8192, 4)}
"""Rows of the product that a device is judged by, and how many of it in a call."""

EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Products by Eigen on a CPU: by default XLA gives them to YNNPACK, whose float32 products are the slower ones from
1536 rows on, those of smaller types the faster by far."""

PATTERN = 61
"""Whole numbers below this one fill what is moved: a prime, so that parts that were exchanged differ."""

SHIFT = 16
"""Elements by which the source of a copy moves each round, a cache line: one that stays would be copied once."""

UNROLLED = 64
"""Rounds of a call that are written out: a loop of nothing but these operations is given to one core of a CPU by XLA,
whatever their size (jaxlib 0.12: its small-while-loop pass). Where XLA makes one round of them all, a call has one."""

ARRAYS = {"copy": 2, "scale": 2, "add": 3, "triad": 3}
"""Arrays that a round of each operation reads or writes, as STREAM counts them (McCalpin, stream.c)."""

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ppermute")


def dtypes_of(device: Any) -> tuple[str, ...]:
    return CPU_DTYPES if device.platform == "cpu" else GPU_DTYPES


class Product:
    """Square products of `size` rows, `chain` of them in a call.

    In a chain each is of the one before, so that calls cost nothing beside them. The result of a call takes the place
    of the one before, so that memory is not asked for in each call. `options` are of XLA, for this program alone.
    """

    def __init__(
        self, device: Any, dtype: str, size: int, chain: int = 1, options: dict[str, Any] | None = None
    ) -> None:
        self.flops = chain * 2 * size**3  # of a call
        self._device, self._dtype, self._chain, self._options = device, dtype, chain, options
        self._accumulates = jnp.int32 if dtype == "int8" else jnp.float32

        def made(key: Any) -> Any:
            entries = jax.random.randint(key, (size, size), -8, 9)
            # Of variance 1 / size, which a chain keeps: products of 8 bits would end as zeros, which cost no power.
            return (entries if dtype == "int8" else entries / (24 * size) ** 0.5).astype(dtype)

        self._a = jax.jit(made)(jax.device_put(jax.random.key(0), device))
        self._c = jax.device_put(jnp.zeros((size, size), self._accumulates if chain == 1 else dtype), device)
        self._call = jax.jit(self._products, compiler_options=options, donate_argnums=0, keep_unused=True)

    def __call__(self) -> Any:
        self._c = self._call(self._c, self._a)
        return self._c

    def is_right(self) -> bool:
        """Whether a product of whole numbers is exact: small ones, for the few bits in which tensor cores add up
        products of 8 bits."""
        whole = [np.random.default_rng(seed).integers(-2, 3, (256, 256)) for seed in (0, 1)]
        given = (jax.device_put(w.astype(jnp.dtype(self._dtype)), self._device) for w in whole)
        exact = jax.jit(self._product, compiler_options=self._options)(*given)
        return bool(np.array_equal(np.asarray(exact), whole[0] @ whole[1]))

    def _product(self, a: Any, b: Any) -> Any:
        return lax.dot(a, b, preferred_element_type=self._accumulates)

    def _products(self, _: Any, a: Any) -> Any:
        if self._chain == 1:
            return self._product(a, a)
        return lax.fori_loop(0, self._chain, lambda _, c: self._product(a, c).astype(self._dtype), a)


class Stream:
    """One of STREAM's operations over float32, an odd number of times in a call, its result in an operand's place.

    copy: x = y, from SHIFT elements further on in every other round
    scale: x = s x    add: x = y - x    triad: x = y + s x

    With s = -1 an odd number of rounds changes each element and an even one restores it, exactly: an element that was
    ever wrong stays so. In place, since XLA's stores first read the line that they fill, so that a result elsewhere
    moves a third more than is counted, and one in newly allocated memory also pays for each page.

    Its arrays take `num_bytes` together. A call reads and writes at least `call_bytes`.
    """

    def __init__(self, device: Any, op: str, num_bytes: int, call_bytes: int) -> None:
        self._op, self._count = op, num_bytes // 8
        round_bytes = 4 * self._count * ARRAYS[op]
        self.rounds = max(call_bytes // round_bytes, 1) | 1
        self._calls = 0
        on_device = SingleDeviceSharding(device)
        self._scalar = jax.device_put(np.float32(-1), on_device)
        self._x = jax.jit(lambda: _pattern(self._count) + 1, out_shardings=on_device)()
        extra = SHIFT if op == "copy" else 0
        self._y = jax.jit(lambda: _pattern(self._count + extra), out_shardings=on_device)()
        self.num_bytes = round_bytes * self.rounds  # that a call reads and writes
        self._is_written_out = op != "copy" and self.rounds <= UNROLLED  # of copies the last alone would stay
        self._step = self._program()
        # What all kernels of the program read and write; 0 if XLA does not report it.
        accessed = (self._step.cost_analysis() or {}).get("bytes accessed", 0.0)
        if self._is_written_out and accessed < 0.9 * self.num_bytes:
            self._is_written_out = False  # JAX 0.10.2 makes one round of them all, and gives loops to all cores
            self._step = self._program()

    def __call__(self) -> Any:
        self._calls += 1
        self._x = self._step(self._x, self._y, self._scalar)
        return self._x

    def num_wrong(self) -> int:
        """Elements that are not what they must be after the calls until now."""
        return int(jax.jit(self._differing, static_argnums=1)(self._x, self._calls % 2))

    def _program(self) -> Any:
        given = self._x, self._y, self._scalar
        return jax.jit(self._rounds, donate_argnums=0, keep_unused=True).lower(*given).compile()

    def _rounds(self, x: Any, y: Any, scalar: Any) -> Any:
        def one(i: Any, x: Any) -> Any:
            match self._op:
                case "copy":
                    return lax.dynamic_slice(y, (i % 2 * SHIFT,), x.shape)
                case "scale":
                    return scalar * x
                case "add":
                    return y - x
            return y + scalar * x

        if self.rounds > 1 and not self._is_written_out:
            return lax.fori_loop(0, self.rounds, one, x)
        for i in range(self.rounds):
            x = lax.optimization_barrier(one(i, x))  # or XLA would make one round of them all
        return x

    def _differing(self, x: Any, is_odd: int) -> Any:
        was, y = _pattern(self._count) + 1, _pattern(self._count)
        if self._op == "copy":
            return (x != y).sum() if self._calls else (x != was).sum()  # an odd number of rounds ends unshifted
        changed = -was if self._op == "scale" else y - was
        return (x != (changed if is_odd else was)).sum()


class Transfer:
    """Copies of random bytes between host and device; of page-locked memory where the backend has it."""

    def __init__(self, device: Any, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        kinds = {memory.kind for memory in device.addressable_memories()}
        self.is_pinned = device.platform != "cpu" and "pinned_host" in kinds
        self._on_device = SingleDeviceSharding(device)
        self._on_host = SingleDeviceSharding(device, memory_kind="pinned_host") if self.is_pinned else None
        self._data = _random_bytes(num_bytes)
        self._source = jax.block_until_ready(jax.device_put(self._data, self._on_host)) if self._on_host else self._data
        self._there = jax.block_until_ready(self.to_device())
        self._back: Any = None

    def to_device(self) -> Any:
        self._there = jax.device_put(self._source, self._on_device, may_alias=False)
        return self._there

    def to_host(self) -> Any:
        if self._on_host:
            self._back = jax.device_put(self._there, self._on_host, may_alias=False)
        else:
            self._back = np.array(self._there)
        return self._back

    def is_right(self) -> bool:
        """Whether what came back is what went."""
        return bool(np.array_equal(np.asarray(self.to_host()), self._data))


class Collective:
    """One collective among all devices, and what nccl-tests counts of it (doc/PERFORMANCE.md)."""

    def __init__(self, devices: list[Any], kind: str, size: int) -> None:
        n = self._n = len(devices)
        self.kind, self._devices = kind, devices
        self._piece = max(size // (4 * n), 1)  # float32 that a device has for each other
        # Bytes of a device's buffer, of the larger one where what is sent and what comes differ.
        self.size = 4 * n * self._piece
        # Bytes that the slowest link must carry, whatever the kind.
        self.bus_bytes = self.size * {"all_reduce": 2 * (n - 1) / n, "ppermute": 1.0}.get(kind, (n - 1) / n)
        given = self._piece if kind == "all_gather" else n * self._piece
        mesh, spec = Mesh(np.array(devices), ("d",)), PartitionSpec("d")

        def each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))

        rank = jax.device_put(np.arange(1, n + 1, dtype=np.float32), NamedSharding(mesh, spec))
        self._given = each(lambda r: _pattern(given) * r[0])(rank)
        self._run = each(self._exchanged)
        self._check = each(lambda x: (x != self._expected(x.shape)).sum()[None])

    def __call__(self) -> Any:
        return self._run(self._given)

    def wrong(self) -> list[str]:
        """The devices whose result is not what it must be."""
        counts = np.asarray(self._check(self()))
        return [name_of(device) for device, bad in zip(self._devices, counts, strict=True) if bad]

    def _exchanged(self, x: Any) -> Any:
        match self.kind:
            case "all_reduce":
                return lax.psum(x, "d")
            case "all_gather":
                return lax.all_gather(x, "d", tiled=True)
            case "reduce_scatter":
                return lax.psum_scatter(x, "d", tiled=True)
            case "all_to_all":
                return lax.all_to_all(x, "d", 0, 0, tiled=True)
        return lax.ppermute(x, "d", [(i, (i + 1) % self._n) for i in range(self._n)])

    def _expected(self, shape: tuple[int, ...]) -> Any:
        """The result that this device must have: rank r gave the pattern r + 1 times."""
        n, piece, me = self._n, self._piece, lax.axis_index("d")
        ranks = jnp.arange(1, n + 1, dtype=jnp.float32)[:, None]
        mine = lax.dynamic_slice(_pattern(n * piece), (me * piece,), (piece,))
        total = n * (n + 1) // 2
        match self.kind:
            case "all_reduce":
                expected = _pattern(n * piece) * total
            case "all_gather":
                expected = _pattern(piece)[None] * ranks
            case "reduce_scatter":
                expected = mine * total
            case "all_to_all":
                expected = mine[None] * ranks
            case _:
                expected = _pattern(n * piece) * ((me - 1) % n + 1)
        return expected.reshape(shape)


def name_of(device: Any) -> str:
    return f"{device.platform}:{device.id}"


def _pattern(count: int) -> Any:
    return (jnp.arange(count, dtype=jnp.int32) % PATTERN).astype(jnp.float32)


@functools.cache
def _random_bytes(count: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, count, np.uint8)
