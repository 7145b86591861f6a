"""How a step's time and memory grow with its batch, the length of its sequences and the depth of its model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aifx.bench.results import Measured
from aifx.bench.suites import Bench
from aifx.bench.train.figures import figures
from aifx.bench.train.memory import room
from aifx.bench.train.series import Series
from aifx.bench.train.subject import Subject
from aifx.config import Config, load_config
from aifx.errors import AifxError

AXES = {
    "batch": ("train.global_batch_size",),
    "seq": ("data.seq_len",),
    "depth": ("model.num_layers", "model.blocks_per_stage"),
}
"""The keys of each axis: the first one that the project's task has."""

SHARE = 0.25
"""Of the time for a result of this suite, for each point: what is looked for is large."""

LEAST = 5


def grow(bench: Bench, base: Measured, folder: Path) -> Iterator[Measured]:
    """Each axis at half, same and double of the project's own value, the others as they are.

    Args:
        base: the project's own step, which stands at "same" on each axis.
    """
    for axis, keys in AXES.items():
        if bench.quick and axis != "batch":
            continue
        found = _find(bench.config, keys)
        if found is None:
            if not bench.quick:
                bench.note(f"train.growth {axis}: task {bench.config.task.kind!r} has no {' or '.join(keys)}")
            continue
        key, value = found
        yield _at(base, axis, value)
        for other in (value // 2,) if bench.quick else (value // 2, 2 * value):
            if other < 1:
                bench.note(f"train.growth {axis}: {key} = {value} has no half")
                continue
            bench.say(f"growth: {key} = {other}")
            measured = _measure(bench, f"{key}={other}", folder / f"{axis}-{other}")
            if measured is not None:
                yield _at(measured, axis, other)


def _at(measured: Measured, axis: str, value: int) -> Measured:
    return measured.model_copy(update={"name": "train.growth", "params": {"axis": axis, "value": value}})


def _find(config: Config, keys: tuple[str, ...]) -> tuple[str, int] | None:
    for key in keys:
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return key, value
    return None


def _measure(bench: Bench, setting: str, folder: Path) -> Measured | None:
    """The step with one setting changed; None, and a note, where there is no such step here."""
    title = f"train.growth: {setting} is left out"
    try:
        config = load_config(bench.project, [*(bench.options.get("set") or ()), setting])
        subject = Subject(bench, config, folder)
    except AifxError as error:
        bench.note(f"{title}: {error.what}")
        return None
    free = room(subject.devices)
    if free is not None and subject.program_bytes is not None and subject.program_bytes > free:
        bench.note(f"{title}: it needs {subject.program_bytes:,} bytes, and {free:,} are free")
        return None
    try:
        subject.begin()
        series = Series(subject.step)
        limit_s = SHARE * bench.effort.slice_s
        series.warm(limit_s)
        series.block(limit_s, LEAST)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        bench.note(f"{title}: memory does not hold it")
        return None
    return bench.measured("growth", series.samples(), **figures(subject, series.median_s))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA or the host says so."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
