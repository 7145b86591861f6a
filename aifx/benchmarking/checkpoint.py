"""Saving and restoring the project's state: what training waits for, and all of it against the disk's own rate."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Samples
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.progress import report_progress
from aifx.training.state import to_tree

logger = logging.getLogger(__name__)

REPEATS, QUICK_REPEATS = 7, 3
"""A few calls of each thing, since one moves the whole state."""

PIECE_BYTES = 8 << 20


def measure(bench: Bench) -> Iterator[Measured]:
    """`disk_write`, `disk_read`: the bytes of a checkpoint as one file, written and flushed, read past the cache.
    `stall`: from the call of a save to its return, when the step goes on. `save`: until the checkpoint counts.
    `restore`: reading it back, verified, onto the devices; `restore_cold`: with its files out of the page cache."""
    with bench.scratch() as folder:
        logger.info("checkpoint: making the state")
        run, programs = bench.build(bench.config, folder / "bench")
        wanted = to_tree(programs.abstract[0], stacked=programs.is_stacked)
        tree = jax.block_until_ready(to_tree(programs.init()[0], stacked=programs.is_stacked))
        timer = _Timer(bench, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        can_drop = hasattr(os, "posix_fadvise")
        if not can_drop:
            left_out = "checkpoint.disk_read and checkpoint.restore_cold are left out"
            logger.warning(f"this system cannot put files out of its cache: {left_out}")
        logger.info("checkpoint: the disk")
        yield from _disk(timer, run.path / "disk", can_drop=can_drop)
        logger.info("checkpoint: saving")
        section = bench.config.checkpoint.model_copy(update={"asynchronous": True, "keep_last": 1, "keep_best": 0})
        checkpoints = Checkpoints(run.checkpoints, section)
        yield from _saves(timer, checkpoints, tree)
        last = checkpoints.latest()
        assert last is not None

        def restore() -> None:
            jax.block_until_ready(checkpoints.restore(last, wanted)[0])

        logger.info("checkpoint: restoring")
        yield timer.time("restore", restore)
        if can_drop:
            yield timer.time("restore_cold", restore, before=lambda: _drop(run.path), against="disk_read")


class _Timer:
    """Results of one bench, all of them of `size` bytes."""

    def __init__(self, bench: Bench, size: int) -> None:
        self._bench, self.size = bench, size
        self.repeats = QUICK_REPEATS if bench.quick else REPEATS
        self._medians: dict[str, float] = {}

    def time(
        self, thing: str, run: Callable[[], None], before: Callable[[], None] = lambda: None, against: str = ""
    ) -> Measured:
        """Time some calls, with `before` called before each, untimed."""
        taken = []
        with report_progress(f"measuring {self._bench.name(thing)}", self.repeats, "calls") as progress:
            for _ in range(self.repeats):
                before()
                started = time.perf_counter()
                run()
                taken.append(time.perf_counter() - started)
                progress.advance(1)
        return self.result(thing, taken, against)

    def result(self, thing: str, seconds: list[float], against: str = "") -> Measured:
        """Args:
        against: the thing whose time is the least that this one could take.
        """
        self._medians[thing] = median(seconds)
        samples, bound_s = Samples(seconds, 1, seconds[0], 0), self._medians.get(against)
        figures = {"size_bytes": self.size}
        return self._bench.measured(thing, samples, num_bytes=self.size, bound_s=bound_s, figures=figures)


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
    yield timer.result("stall", stalls[1:])
    yield timer.result("save", saves[1:], against="disk_write")


def _disk(timer: _Timer, path: Path, *, can_drop: bool) -> Iterator[Measured]:
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

    yield timer.time("disk_write", write, before=lambda: path.unlink(missing_ok=True))
    if can_drop:
        yield timer.time("disk_read", read, before=lambda: _drop(path.parent))
    path.unlink()


def _drop(folder: Path) -> None:
    """Put the files below a folder out of the page cache."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
