"""Numbers of steps: their records, one step late and without waiting for the device, sums over processes, times."""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from aifx.data.base import Batch
from aifx.parallel.layout import Layout
from aifx.runs.records import Span, TimeAccount
from aifx.training.records import Record, RunInfo

SummedCounts: TypeAlias = "np.ndarray[Any, Any] | jax.Array"
"""Integers summed over the processes, int32. With one process they are a NumPy array, known at once."""


class SumReducer:
    """Adds up integers over the processes whose devices a layout has. All of them make the same calls."""

    def __init__(self, layout: Layout, count: int) -> None:
        self._count = count
        self._devices = None if isinstance(layout.mesh, AbstractMesh) else layout.mesh
        self._is_one_process = self._devices is None or not self._devices.is_multi_process

    def __call__(self, values: Sequence[int]) -> SummedCounts:
        """The sum of each of the `count` values, which is not waited for."""
        own = np.array(values, np.int32)
        if self._is_one_process:
            return own
        rows: dict[Any, np.ndarray[Any, Any]] = {
            d: np.zeros((1, self._count), np.int32) for d in self._sharding.addressable_devices
        }
        first = min(rows, key=lambda device: device.id)
        rows[first] = own[None]
        shards = [jax.device_put(row, device) for device, row in rows.items()]
        assert self._devices is not None
        shape = self._devices.size, self._count
        summed: jax.Array = self._sum(jax.make_array_from_single_device_arrays(shape, self._sharding, shards))
        return summed

    @functools.cached_property
    def _sharding(self) -> NamedSharding:
        assert self._devices is not None
        return NamedSharding(self._devices, PartitionSpec(self._devices.axis_names))

    @functools.cached_property
    def _sum(self) -> Callable[[jax.Array], jax.Array]:
        assert self._devices is not None
        replicated = NamedSharding(self._devices, PartitionSpec())
        return jax.jit(lambda rows: jnp.sum(rows, axis=0), out_shardings=replicated)


@dataclass
class _Pending:
    step: int
    numbers: jax.Array
    batch: Batch
    sums: SummedCounts  # units of the batch, and how many processes ask to stop
    data_wait_s: float
    done_at: float | None = None  # if that is known before the step is drained


class Meter:
    """Keeps the steps that are dispatched and not yet drained, and the clock.

    A step's time runs from the moment the step before it was done to the moment it is done itself, pauses (validation,
    saving) left out.
    """

    def __init__(self, info: RunInfo, units_before: int, loss_before: float | None) -> None:
        self.units = units_before
        self.loss = loss_before  # of the last drained step whose update was applied
        self.steps = 0
        self._info = info
        self._pending: deque[_Pending] = deque()
        self._mark = time.perf_counter()
        self._steady_s = 0.0
        self._steady_units = 0
        self.has_votes = False  # whether a process asked to stop in a step that is known

    def dispatched(self, step: int, numbers: jax.Array, sums: SummedCounts, batch: Batch, data_wait_s: float) -> None:
        """Keep a dispatched step: its STEP_METRICS, and the sums over the processes of units and of votes to stop."""
        self._pending.append(_Pending(step, numbers, batch, sums, data_wait_s))
        if isinstance(sums, np.ndarray):  # of one process, known now
            self.has_votes = bool(sums[1:].any())
        if numbers.is_ready():  # type: ignore[attr-defined]  # small programs run within their dispatch
            self._spread(time.perf_counter())

    def drain(self, leave: int) -> Iterator[tuple[Record, Batch]]:
        """Record and batch of all but the last `leave` steps, and of these too once a process asked to stop."""
        if leave == 0 and self._pending:
            jax.block_until_ready(self._pending[-1].numbers)
            self._spread(time.perf_counter())
        while len(self._pending) > (0 if self.has_votes else leave):
            done = self._pending.popleft()
            yield self._record(done), done.batch

    def resume_clock(self) -> None:
        """Restart the step timer after a pause."""
        self._mark = time.perf_counter()

    @property
    def computing(self) -> jax.Array | None:
        """STEP_METRICS of the step that was dispatched last; None if it is drained."""
        return self._pending[-1].numbers if self._pending else None

    @property
    def units_per_s(self) -> float | None:
        """Units per second over the steps so far. The first, which warms up, counts only until there is another."""
        return self._steady_units / self._steady_s if self._steady_s > 0 else None

    def _spread(self, now: float) -> None:
        """Spread the ends of the pending steps evenly from the last one that is known to `now`."""
        known = max([self._mark, *(p.done_at for p in self._pending if p.done_at is not None)])
        unknown = [p for p in self._pending if p.done_at is None]
        for i, pending in enumerate(unknown, 1):
            pending.done_at = known + max(now - known, 0.0) * i / len(unknown)

    def _record(self, done: _Pending) -> Record:
        loss, grad_norm, learning_rate = (float(x) for x in np.asarray(done.numbers))  # waits for the device
        done_at = done.done_at or time.perf_counter()
        step_time_s, self._mark = max(done_at - self._mark, 1e-9), done_at
        units, *votes = (int(x) for x in np.asarray(done.sums))
        self.has_votes |= any(votes)
        is_skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        if not is_skipped:
            self.loss = loss
            self.units += units
        self.steps += 1
        if self.steps == 2:
            self._steady_s, self._steady_units = 0.0, 0
        self._steady_s += step_time_s
        self._steady_units += units
        flops_per_s = self._info.flops_per_step / step_time_s
        peak, ceiling = self._info.peak, self._info.ceiling
        return Record(
            step=done.step,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            units=self.units,
            units_per_s=units / step_time_s,
            step_time_s=step_time_s,
            data_wait_s=done.data_wait_s,
            mfu=flops_per_s / peak.flops if peak else None,
            ceiling_fraction=flops_per_s / ceiling.flops if ceiling else None,
            time=time.time(),
            unit=self._info.unit,
            is_skipped=is_skipped,
        )


_COMPILED = "/jax/core/compile/backend_compile_duration"


class DataWait:
    """The waits for batches. While the device still computes, a wait costs nothing and counts as the step's time."""

    def __init__(self, account: TimeAccount) -> None:
        self._account = account
        self._watched: queue.SimpleQueue[tuple[jax.Array, Span] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextmanager
    def __call__(self, computing: jax.Array | None) -> Iterator[None]:
        """Time a block that waits for a batch. `computing` is `Meter.computing`: once it is ready, the device idles."""
        if computing is None or computing.is_ready():  # type: ignore[attr-defined]
            with self._account.spending("data_wait"):
                yield
            return
        with self._account.spending("step") as span:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="aifx-data-wait", daemon=True)
                self._thread.start()
            self._watched.put((computing, span))
            yield

    def __enter__(self) -> DataWait:
        return self

    def __exit__(self, *_: object) -> None:
        self._watched.put(None)

    def _watch(self) -> None:
        while (watched := self._watched.get()) is not None:
            computing, span = watched
            with suppress(Exception):  # the loop meets it as well, and reports it
                jax.block_until_ready(computing)
            self._account.change(span, "data_wait")


@contextmanager
def compilations_counted(account: TimeAccount) -> Iterator[None]:
    """Count what this thread compiles in the block as "compilation", also amid an evaluation."""
    thread = threading.get_ident()

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED and threading.get_ident() == thread:
            account.shift("compilation", duration_secs)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
