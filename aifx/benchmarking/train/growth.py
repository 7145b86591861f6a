"""Growth of a step's time and memory with its batch, the length of its sequences and the depth of its model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from aifx.benchmarking.results import Measured, Param
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.train.rounds import Series
from aifx.benchmarking.train.subject import Subject
from aifx.config import Config
from aifx.core.errors import AifxError
from aifx.kinds import load_config
from aifx.machine.device_memory import is_out_of_memory, room

logger = logging.getLogger(__name__)

AXES = {
    "batch": ("train.global_batch_size",),
    "seq": ("data.seq_len",),
    "depth": ("model.num_layers", "model.blocks_per_stage"),
}
"""The keys of each axis: the first one that the project's task has."""

SHARE = 0.25
"""Share of the time for a result of this suite that each point gets: the expected effects are large."""

LEAST = 5


class Left(Exception):
    """A size that cannot be measured, with the reason."""


def grow(bench: Bench, base: Measured, folder: Path) -> Iterator[Measured]:
    """Each axis at half, same and double of the project's own value, the others as they are. The project's own step,
    `base`, is "same" on each axis."""
    for axis, keys in AXES.items():
        if bench.quick and axis != "batch":
            continue
        found = _find(bench.config, keys)
        if found is None:
            logger.warning(f"train.growth {axis}: task {bench.config.task.kind!r} has no {' or '.join(keys)}")
            continue
        key, value = found
        same = {"name": bench.name("growth"), "params": {"axis": axis, "value": value}, "same_as": base.key}
        yield base.model_copy(update=same)
        for other in (value // 2,) if bench.quick else (value // 2, 2 * value):
            if other < 1:
                logger.warning(f"train.growth {axis}: {key} = {value} has no half")
                continue
            logger.info(f"growth: {key} = {other}")
            try:
                yield _measure(bench, f"{key}={other}", {"axis": axis, "value": other}, folder / f"{axis}-{other}")
            except Left as left:
                logger.warning(f"train.growth: {key}={other} is left out: {left}")


def _find(config: Config, keys: tuple[str, ...]) -> tuple[str, int] | None:
    for key in keys:
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return key, value
    return None


def _measure(bench: Bench, setting: str, params: dict[str, Param], folder: Path) -> Measured:
    """The step with one setting changed. Raises Left where there is no such step here."""
    try:
        config = load_config(bench.project, [*(bench.options.get("set") or ()), setting])
        subject = Subject(bench, config, folder)
        free, needed = room(subject.devices), subject.program_bytes
        if free is not None and needed is not None and needed > free:
            raise Left(f"it needs {needed:,} bytes, and {free:,} are free")
        subject.begin()
        series = Series(subject.step)
        limit_s = SHARE * bench.effort.slice_s
        series.warm(limit_s)
        series.block(limit_s, LEAST)
    except AifxError as error:
        raise Left(error.what) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Left("memory does not hold it") from error
    return bench.measured("growth", series.samples(series.seconds), params=params, **subject.figures(series.median_s))
