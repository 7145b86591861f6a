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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from aifx.config import Config
from aifx.core.errors import AifxError
from aifx.core.processes import connect
from aifx.core.project import Project
from aifx.kinds import read_config
from aifx.machine.device_memory import extra_bytes, is_out_of_memory, room
from aifx.parallel.checks import check_batch
from aifx.parallel.layout import abstract_layout
from aifx.planning.counting import Counted, choices
from aifx.planning.fit import candidates, needed_bytes
from aifx.planning.hardware import Hardware
from aifx.planning.hlo import count_traffic
from aifx.planning.network import Collective, link_uses, network_of
from aifx.planning.plan import capacity_of, usable_cores
from aifx.planning.targets import compile_layout, missing_compiler, places_of
from aifx.planning.work import Work, apply_settings, with_model, with_scanned_layers
from aifx.programs.build import Programs, build
from aifx.tasks.project_errors import project_errors
from aifx.tasks.registry import describe_or_open_task, load_task

TRAINING_PACKAGES = ("grain", "tensorstore", "tokenizers")
TRIES = 3
"""Candidates that are compiled, at most."""

LESS = 0.95
"""Of the memory that is counted now: what settings need that are to fit where those of now don't."""


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
    """Yield the events of a request: `root`, `config` (TOML), `hardware` (its document), `assets` of a run or None,
    `compile`, `fit` (False, True or "smaller")."""
    project = Project(Path(request["root"]))
    path = folder / "config.toml"
    path.write_text(request["config"], encoding="utf-8")
    config = read_config(path, project)
    hardware = Hardware.from_document(request["hardware"])
    if not request["fit"]:
        layout = abstract_layout(hardware.num_devices, hardware.platform, hardware.device_kind, config.mesh)
        check_batch(layout, config.train.global_batch_size, config.train.gradient_accumulation)
    with project_errors(config.parts, project):
        assets = request["assets"]
        task = load_task(config, project, Path(assets)) if assets else describe_or_open_task(config, project, folder)
        work, scanned = Work(task, hardware), with_scanned_layers(config, hardware)
        if request["fit"]:
            yield from _fitted(work, scanned, request["compile"], is_smaller=request["fit"] == "smaller")
        else:
            yield from _planned(work, scanned, request["compile"])


def _planned(work: Work, config: Config, with_compiler: bool) -> Iterator[dict[str, Any]]:
    yield counted_event(work.hardware, work.count(config), work.asked)
    if with_compiler:
        yield _compiled(work, config)


def counted_event(hardware: Hardware, counted: Counted, asked: dict[str, str]) -> dict[str, Any]:
    return {
        "event": "counted",
        "asked": asked,
        "process_bytes": _resident_bytes(),
        **asdict(replace(counted, collectives=[])),
        "links": _links(hardware, counted.collectives),
    }


def _fitted(work: Work, config: Config, with_compiler: bool, *, is_smaller: bool) -> Iterator[dict[str, Any]]:
    """The first candidate that fits also when it is compiled; if `is_smaller`, of those that need less than now."""
    fitting, least = candidates(config, work, usable_cores())
    if is_smaller:
        now = needed_bytes(work.count(config), work.hardware)
        fitting = [one for one in fitting if one.needed_bytes < LESS * now]
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
    if hardware.platform == "tpu" and hasattr(jax.config, "jax_optimization_level"):
        # A third of the time to compile. GPT-2 124M on a v5e: temporaries of 5.682 GB instead of 5.677.
        jax.config.update("jax_optimization_level", "O1")
    started = time.monotonic()
    try:
        layout, platforms = compile_layout(hardware, config.mesh)
        # The mesh knows its devices' kind: jax_kernels chooses the implementations that they would run.
        is_cpu = hardware.platform == "cpu"
        with nullcontext() if is_cpu else jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            kernels = choices(config.kernels, work.asked)
            programs = build(config, with_model(work.task, config), layout, kernels=kernels)
            lowered = programs.train_step.lower(platforms)
        if is_cpu:
            _grow_as_training_does(programs)
        compiled = lowered.compile()
    except Exception as error:  # XLA's own types
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return {"event": "not_compiled", "why": reason[:300], "out_of_memory": is_out_of_memory(error)}
    duration_s = time.monotonic() - started
    traffic = count_traffic(compiled.as_text() or "")
    stats: Any = compiled.memory_analysis()
    return {
        "event": "compiled",
        "duration_s": duration_s,
        "argument_bytes": int(stats.argument_size_in_bytes),
        "extra_bytes": extra_bytes(compiled),
        "traffic": asdict(replace(traffic, collectives=[])),
        "links": [] if is_cpu else _links(hardware, traffic.collectives, places_of(layout)),
        "process_bytes": _resident_bytes(),
        "room_bytes": room(layout.devices) if hardware.platform == "cpu" else None,
    }


def _links(
    hardware: Hardware, collectives: list[Collective], places: list[tuple[int, ...]] | None = None
) -> list[dict[str, Any]]:
    if hardware.chip is None or not collectives:
        return []
    return [asdict(use) for use in link_uses(collectives, network_of(hardware, places))]


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
