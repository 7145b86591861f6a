"""Saving and restoring the project's state: what training waits for, and all of it against the disk's own rate."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.benchmarking.results import Measured
from aifx.benchmarking.setup import prepared
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Samples
from aifx.checkpoint import Checkpoints
from aifx.core.progress import report_progress
from aifx.training.state import to_tree

logger = logging.getLogger(__name__)

REPEATS, QUICK_REPEATS = 7, 3
PIECE_BYTES = 8 << 20


def measure(bench: Bench) -> Iterator[Measured]:
    """`disk_write`, `disk_read`: the bytes of a checkpoint as one file, written and flushed, read past the cache.
    `stall`: from the call of a save to its return, when the step goes on. `save`: until the checkpoint counts.
    `restore`: reading it back, verified, onto the devices; `restore_cold`: with its files out of the page cache."""
    with prepared(bench) as ready:
        logger.info("checkpoint: making the state")
        programs = ready.programs
        wanted = to_tree(programs.abstract[0], stacked=programs.is_stacked)
        tree = jax.block_until_ready(to_tree(programs.init()[0], stacked=programs.is_stacked))
        timer = _Timer(bench, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        drop = _droppable(ready.run.path, bench)
        logger.info("checkpoint: the disk")
        yield from _disk(timer, ready.run.path / "disk", drop)
        logger.info("checkpoint: saving")
        section = ready.config.checkpoint.model_copy(update={"asynchronous": True, "keep_last": 1, "keep_best": 0})
        checkpoints = Checkpoints(ready.run.checkpoints, section)
        yield from _saves(timer, checkpoints, tree)
        last = checkpoints.latest()
        assert last is not None

        def restore() -> None:
            jax.block_until_ready(checkpoints.restore(last, wanted)[0])

        logger.info("checkpoint: restoring")
        yield timer.result("restore", restore)
        if drop is not None:
            yield timer.result("restore_cold", restore, before=drop, against="disk_read")


class _Timer:
    """A few calls of each thing, since one moves the whole state."""

    def __init__(self, bench: Bench, size: int) -> None:
        self._bench, self.size = bench, size
        self.repeats = QUICK_REPEATS if bench.quick else REPEATS
        self._medians: dict[str, float] = {}

    def result(
        self, thing: str, run: Callable[[], None], before: Callable[[], None] = lambda: None, against: str = ""
    ) -> Measured:
        """Args:
        before: called before each call, untimed.
        against: the thing whose time is the least that this one could take.
        """
        taken = []
        with report_progress(f"measuring {self._bench.name(thing)}", self.repeats, "calls") as progress:
            for _ in range(self.repeats):
                before()
                started = time.perf_counter()
                run()
                taken.append(time.perf_counter() - started)
                progress.advance(1)
        return self.measured(thing, taken, against)

    def measured(self, thing: str, seconds: list[float], against: str = "") -> Measured:
        self._medians[thing] = statistics.median(seconds)
        return self._bench.measured(
            thing,
            Samples(seconds, 1, seconds[0], 0),
            num_bytes=self.size,
            bound_s=self._medians.get(against),
            figures={"size_bytes": self.size},
        )


def _saves(timer: _Timer, checkpoints: Checkpoints, tree: Any) -> Iterator[Measured]:
    """The first save has files to make and memory to take, as each run's first has; it is not counted.

    Each has arrays that were not saved before, as a step's results are: JAX keeps what it copied to the host with them.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, tree)
    copied = jax.jit(lambda tree: tree, donate_argnums=0, out_shardings=places)
    stalls, saves = [], []
    with report_progress("measuring checkpoint.save", timer.repeats + 1, "saves") as progress:
        for step in range(timer.repeats + 1):
            tree = jax.block_until_ready(copied(tree))
            started = time.perf_counter()
            checkpoints.save(step, tree, host={})
            stalls.append(time.perf_counter() - started)
            checkpoints.wait()
            saves.append(time.perf_counter() - started)
            progress.advance(1)
    yield timer.measured("stall", stalls[1:])
    yield timer.measured("save", saves[1:], against="disk_write")


def _droppable(folder: Path, bench: Bench) -> Callable[[], None] | None:
    """What puts the files below a folder out of the page cache; None where the system does not do so for us."""
    if not hasattr(os, "posix_fadvise"):
        left_out = "checkpoint.disk_read and checkpoint.restore_cold are left out"
        logger.warning(f"this system cannot put files out of its cache: {left_out}")
        return None

    def drop() -> None:
        for path in (p for p in folder.rglob("*") if p.is_file()):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    return drop


def _disk(timer: _Timer, path: Path, drop: Callable[[], None] | None) -> Iterator[Measured]:
    """One file of bytes that do not compress, written in large pieces and flushed, and read past the cache."""
    block = np.random.default_rng(0).integers(0, 256, min(timer.size, PIECE_BYTES), np.uint8).tobytes()
    into = bytearray(len(block))

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, timer.size, len(block)):
                file.write(memoryview(block)[: timer.size - start])
            os.fsync(file.fileno())

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(into):
                pass

    yield timer.result("disk_write", write, before=lambda: path.unlink(missing_ok=True))
    if drop is not None:
        yield timer.result("disk_read", read, before=drop)
    path.unlink()
