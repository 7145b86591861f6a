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
from jax.experimental import topologies

from aifx.config import Config
from aifx.config.project_errors import project_errors
from aifx.config.sections import MeshSection
from aifx.core.errors import AifxError
from aifx.core.extras import install_command
from aifx.core.processes import connect
from aifx.core.project import Project
from aifx.kinds import read_config
from aifx.machine.device_memory import extra_bytes, is_out_of_memory, room
from aifx.machine.present import can_compile_for_gpus, can_compile_for_tpus
from aifx.parallel.checks import check_batch
from aifx.parallel.layout import Layout, abstract_layout, layout_over, local_layout
from aifx.planning.counting import Counted, choices
from aifx.planning.fit import candidates, needed_bytes
from aifx.planning.hardware import Hardware
from aifx.planning.hlo import count_traffic
from aifx.planning.network import Collective, link_uses, network_of
from aifx.planning.plan import capacity_of, usable_cores
from aifx.planning.work import Work, apply_settings, with_model, with_scanned_layers
from aifx.programs.build import Programs, build
from aifx.tasks.registry import describe_or_open_task, load_task

TRAINING_PACKAGES = ("grain", "tensorstore", "tokenizers")
TRIES = 3
"""Candidates that are compiled, at most."""

LESS = 0.95
"""Share of the memory counted now that other settings may need, if they are to fit where the present ones don't."""


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


_DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}  fpus_per_core: {fpus}  clock_rate_ghz: {clock_ghz}
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {shared_block}  shared_memory_per_core: {shared_core}
  l2_cache_size: {l2}  memory_bandwidth: {bandwidth}  device_memory_size: {memory_bytes}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{kind}"
"""


def missing_compiler(hardware: Hardware) -> str:
    """The reason that this machine cannot compile for the hardware; empty if it can."""
    if hardware.platform == "cpu":
        return ""
    if hardware.platform == "tpu":
        return "" if can_compile_for_tpus() else f"libtpu is not installed: {install_command('plan-tpu')}"
    if hardware.chip is None or hardware.chip.cuda is None:
        return f"aifx has no description of {hardware.device_kind} for XLA's compiler"
    if can_compile_for_gpus():
        return ""
    command = f"pip install jax-cuda12-plugin=={jax.__version__} nvidia-cuda-nvcc-cu12"
    return f"XLA's compiler for GPUs is not installed: {command}"


def compile_layout(hardware: Hardware, mesh: MeshSection) -> tuple[Layout, tuple[str, ...] | None]:
    """The layout over devices that a compiler knows, and the platform to lower for. Raises what XLA raises."""
    if hardware.platform == "cpu":
        return local_layout(1, mesh), None
    if hardware.platform == "tpu":
        slices = {"num_slices": hardware.slices} if hardware.slices > 1 else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=_topology(hardware), **slices)
        return layout_over(described.devices[: hardware.num_devices], mesh), None
    assert hardware.chip is not None
    assert hardware.chip.cuda is not None
    bandwidth = round(hardware.chip.memory_gb_s * 1e9)
    text = _DESCRIPTION.format(**vars(hardware.chip.cuda), bandwidth=bandwidth, kind=hardware.device_kind)
    nodes = -(-hardware.num_devices // hardware.per_node)
    shape = f"1x{nodes}x{min(hardware.num_devices, hardware.per_node)}"
    described = topologies.get_topology_desc(platform="cuda", target_config=text, topology=shape)
    return layout_over(described.devices[: hardware.num_devices], mesh), ("cuda",)


def places_of(layout: Layout) -> list[tuple[int, ...]]:
    """The place of each device, in the mesh's order: slice and coordinates, or node (`aifx.planning.network`)."""
    if layout.platform == "tpu":
        return [(getattr(device, "slice_index", 0) or 0, *device.coords) for device in layout.devices]
    return [(device.coords[1],) for device in layout.devices]


def _topology(hardware: Hardware) -> str:
    """libtpu describes whole hosts: of one chip, a corner of four."""
    generation, _, shape = hardware.topology.partition(":")
    if hardware.num_chips >= 4 and shape:
        return hardware.topology
    generation = generation or {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}.get(
        hardware.device_kind, "tpu7x"
    )
    return f"{generation}:{'2x2' if generation in ('v5e', 'v6e') else '2x2x1'}"


if __name__ == "__main__":
    main()
