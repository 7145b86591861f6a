"""The process that traces and compiles for a plan: `python -m aifx.planning.worker REQUEST`, with JAX on the CPU.

It is a process of its own since a compiler may crash, and since JAX reads its platforms once. It writes events as JSON
lines: "counted", "compiled", "not_compiled", "fit", "nothing_fits", "failed".
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from aifx.config import Config
from aifx.config.kinds import resolve
from aifx.config.load import read_config
from aifx.core.errors import AifxError
from aifx.core.processes import connect
from aifx.core.project import Project
from aifx.machine.device_memory import extra_bytes, is_out_of_memory, room
from aifx.parallel.layout import abstract_layout
from aifx.planning.counting import Counted, choices, count
from aifx.planning.fit import apply_settings, candidates
from aifx.planning.hardware import Hardware, find_hardware
from aifx.planning.hlo import count_traffic
from aifx.planning.plan import capacity_of, usable_cores
from aifx.planning.targets import compile_layout, missing_compiler
from aifx.programs.build import Programs, build
from aifx.tasks.base import Task
from aifx.tasks.project_errors import project_errors
from aifx.tasks.registry import describe_or_open_task, load_task

TRAINING_PACKAGES = ("grain", "tensorstore", "tokenizers")
TRIES = 3
"""Candidates that are compiled, at most."""


def main() -> None:
    emit = connect()
    request = json.loads(sys.argv[1])
    try:
        with tempfile.TemporaryDirectory() as folder:
            for event in plan_events(request, Path(folder)):
                emit(event)
    except AifxError as error:
        emit({"event": "failed", "what": error.what, "why": error.why, "hint": error.hint})


def plan_events(request: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a request: `root`, `config` (TOML), `hardware`, `assets` of a run or None, `compile`,
    `fit`."""
    project = Project(Path(request["root"]))
    path = folder / "config.toml"
    path.write_text(request["config"], encoding="utf-8")
    config = read_config(path, project)
    hardware = find_hardware(request["hardware"], config.train.devices)
    if not request["fit"]:
        layout = abstract_layout(hardware.num_devices, hardware.platform, hardware.device_kind)
        layout.check_batch(config.train.global_batch_size, config.train.gradient_accumulation)
    with project_errors(config, project):
        assets = request["assets"]
        task = load_task(config, project, Path(assets)) if assets else describe_or_open_task(config, project, folder)
        work = Work(task, hardware)
        if request["fit"]:
            yield from _fitted(work, config, request["compile"])
        else:
            yield from _planned(work, config, request["compile"])


@dataclass
class Work:
    """What is planned: a task on some hardware.

    Attributes:
        asked: implementations by op, where the one that would run can't be traced here.
    """

    task: Task
    hardware: Hardware
    asked: dict[str, str] = field(default_factory=dict)

    def count(self, config: Config) -> Counted:
        try:
            return self._count(config)
        except RuntimeError as error:  # JAX's own type
            if "cuDNN" not in str(error):
                raise
            self.asked = {"attention": "pallas_triton"}
            return self._count(config)

    def _count(self, config: Config) -> Counted:
        hardware = self.hardware
        task = with_model(self.task, config)
        return count(config, task, hardware.platform, hardware.device_kind, hardware.num_devices, self.asked)


def _planned(work: Work, config: Config, with_compiler: bool) -> Iterator[dict[str, Any]]:
    counted = work.count(config)
    yield {"event": "counted", "asked": work.asked, "process_bytes": _resident_bytes(), **asdict(counted)}
    if with_compiler:
        yield _compiled(work, config)


def _fitted(work: Work, config: Config, with_compiler: bool) -> Iterator[dict[str, Any]]:
    """The first candidate that fits also when it is compiled."""
    fitting, least = candidates(config, work.hardware, usable_cores(), work.count)
    events = list[dict[str, Any]]()
    for candidate in [*fitting[:TRIES], least] if fitting else []:
        events = list(_planned(work, apply_settings(config, candidate.settings), with_compiler))
        if _fits(work.hardware, events):
            yield {"event": "fit", "settings": candidate.settings}
            yield from events
            return
    yield {"event": "nothing_fits", "settings": least.settings, "needed_bytes": least.needed_bytes}
    yield from events or _planned(work, apply_settings(config, least.settings), False)


def _fits(hardware: Hardware, events: list[dict[str, Any]]) -> bool:
    last = events[-1]
    if last["event"] == "compiled":
        needed = last["argument_bytes"] + last["extra_bytes"]
        if hardware.platform == "cpu":
            needed += (last["process_bytes"] or 0) + events[0]["parameters"] + events[0]["optimizer"]
        return bool(needed <= capacity_of(hardware, last["room_bytes"]).value)
    return not last.get("out_of_memory")


def _compiled(work: Work, config: Config) -> dict[str, Any]:
    hardware = work.hardware
    if why := missing_compiler(hardware):
        return {"event": "not_compiled", "why": why}
    unrolled = hardware.platform != "cpu" and getattr(config.model, "scan_layers", None) is False
    if unrolled:  # ten times as quick to compile, with the same arrays
        config = replace(config, model=config.model.model_copy(update={"scan_layers": True}))
    if hardware.platform == "tpu" and hasattr(jax.config, "jax_optimization_level"):
        # A third of the time to compile. GPT-2 124M on a v5e: temporaries of 5.682 GB instead of 5.677.
        jax.config.update("jax_optimization_level", "O1")
    started = time.monotonic()
    try:
        layout, platforms = compile_layout(hardware)
        # The mesh knows its devices' kind: jax_kernels chooses the implementations that they would run.
        is_cpu = hardware.platform == "cpu"
        with nullcontext() if is_cpu else jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            kernels = choices(config, work.asked)
            programs = build(config, with_model(work.task, config), layout, kernels=kernels)
            lowered = programs.train_step.lower(platforms)
        if is_cpu:
            _grow_as_training_does(programs)
        compiled = lowered.compile()
    except Exception as error:  # XLA's own types
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return {"event": "not_compiled", "why": reason[:300], "out_of_memory": is_out_of_memory(error)}
    duration_s = time.monotonic() - started
    stats: Any = compiled.memory_analysis()
    return {
        "event": "compiled",
        "duration_s": duration_s,
        "scanned": unrolled,
        "argument_bytes": int(stats.argument_size_in_bytes),
        "extra_bytes": extra_bytes(compiled),
        "traffic": asdict(count_traffic(compiled.as_text() or "")),
        "process_bytes": _resident_bytes(),
        "room_bytes": room(layout.devices) if hardware.platform == "cpu" else None,
    }


def with_model(task: Task, config: Config) -> Task:
    """The task with the model that `config` describes; of a project's own class as it is."""
    if config.parts.task is not None:
        return task
    return replace(task, model=resolve(config.parts.kinds["model"].make)(config.model, task.data))


def _grow_as_training_does(programs: Programs) -> None:
    """Load and compile what a training has in its process in addition to the step, so that its memory is known."""
    for package in TRAINING_PACKAGES:
        importlib.import_module(package)
    programs.init.lower().compile()


def _resident_bytes() -> int | None:
    """Memory of this process: Python, JAX and the compiled program; None if the system doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
