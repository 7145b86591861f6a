"""The plan of a run on some hardware: from what was counted and compiled to memory, time, energy and cost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aifx.config import Config
from aifx.config.sections import CheckpointSection, ModelSection, OptimizerSection, Remat
from aifx.models.sections import LayeredSection
from aifx.planning.figures import Figure, published_chips, rates_of
from aifx.planning.hardware import Hardware
from aifx.planning.network import LinkUse
from aifx.planning.step_time import PASSES, Assumptions, Time, elementwise_bytes, mfu_of, step_time, time_of

GPU_MEMORY_SHARE = 0.75
"""Share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise (docs.jax.dev, GPU
memory allocation)."""

TPU_RESERVED_BYTES = 256 << 20
"""Memory that the TPU runtime keeps: libtpu gives programs 15.75 of a v5e's 16 GiB."""

TRAINING_BYTES = 85_000_000
"""Memory of a training process in addition to its arrays and to the memory of a plan's process: tokenizer, data,
writing of checkpoints. The median over six models that benchmarks/plan.py drew (seeds 7 and 303516; 56 to 107 MB)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        activations: what the backward pass reads of the forward pass.
        temporaries: everything else that the step needs while it runs.
        checkpoint_copy: on a CPU, the copy of the state that is written while training goes on.
        process: on a CPU, Python, JAX and the compiled program.
        headroom: capacity less total; negative if the run doesn't fit.
    """

    parameters: Figure
    optimizer: Figure
    gradients: Figure
    activations: Figure
    logits: Figure
    temporaries: Figure
    batch: Figure
    checkpoint_copy: Figure | None
    process: Figure | None
    total: Figure
    capacity: Figure
    headroom: Figure


@dataclass(frozen=True)
class Disk:
    """Checkpoints on the disk of the project's runs."""

    checkpoint_bytes: Figure
    kept: int
    free_bytes: Figure
    fitting: Figure


@dataclass(frozen=True)
class Plan:
    """A run on some hardware.

    Attributes:
        hardware: as it was named.
        mesh: devices along each of its axes.
        layout: the same in words.
        links: what a step sends over the links, the longest first.
        time: None if no device is as fast as the estimate says; `notes` say why.
        fits: whether its memory fits each device.
        settings: values that `aifx plan --fit` found, by key; empty without it.
        not_compiled: why nothing was compiled; empty if it was.
        notes: what else must be known.
    """

    hardware: str
    device_kind: str
    num_devices: int
    mesh: dict[str, int]
    layout: str
    global_batch_size: int
    gradient_accumulation: int
    remat: Remat | None
    dtype: str
    unit: str
    num_parameters: int
    fits: bool
    memory: Memory
    model_flops_per_step: Figure
    flops_per_step: Figure
    bytes_per_step: Figure
    time: Time | None
    links: list[LinkUse]
    disk: Disk
    compile_s: float | None
    not_compiled: str
    settings: dict[str, Any]
    notes: list[str]


def make_plan(
    hardware: Hardware,
    config: Config,
    counted: Mapping[str, Any],
    compiled: Mapping[str, Any] | None,
    not_compiled: str,
    runs_path: Path,
    given: Assumptions,
    settings: Mapping[str, Any] | None = None,
    out_of_memory: bool = False,
) -> Plan:
    """Make the plan from the events of a worker. Raises ValueError if the catalogue lacks a peak.

    Args:
        out_of_memory: the compiler refused the step for its memory.
        counted, compiled: events of `aifx.planning.worker`.
        settings: what `--fit` found.
    """
    memory = _memory(hardware, config.optimizer, counted, compiled)
    n = hardware.num_devices
    rates = rates_of(hardware, list(counted["product_flops"]), usable_cores())
    links = [LinkUse(**use) for use in (compiled or counted)["links"]]
    found = step_time(
        counted, compiled["traffic"] if compiled else None, links, rates, is_cpu=hardware.platform == "cpu"
    )
    mfu = mfu_of(hardware, counted, found.step)
    is_possible = mfu is None or mfu[0] <= 1 or hardware.chip is None  # a processor may exceed the estimate of its peak
    flops = sum(counted["product_flops"].values()) * n
    moved = _bytes_moved(counted, compiled)
    return Plan(
        hardware=hardware.name,
        device_kind=hardware.device_kind,
        num_devices=n,
        mesh=counted["mesh"],
        layout=_layout(counted),
        global_batch_size=config.train.global_batch_size,
        gradient_accumulation=config.train.gradient_accumulation,
        remat=config.model.remat if isinstance(config.model, LayeredSection) else None,
        dtype=counted["dtype"],
        unit=counted["unit"],
        num_parameters=counted["num_parameters"],
        fits=memory.headroom.value >= 0 and not out_of_memory,
        memory=memory,
        model_flops_per_step=Figure(counted["model_flops"], "counted", "the model's formula (docs/models.md)"),
        flops_per_step=Figure(flops, "counted", "products of the traced step, including recomputation"),
        bytes_per_step=Figure(moved.value * n, moved.basis, moved.source),
        time=time_of(hardware, config.train.num_steps, counted, found, rates, given) if is_possible else None,
        links=links,
        disk=_disk(config.checkpoint, counted, runs_path),
        compile_s=compiled["duration_s"] if compiled else None,
        not_compiled=not_compiled,
        settings=dict(settings or {}),
        notes=[
            *_notes(hardware, config.model, counted, compiled, memory),
            *_notes_on_time(hardware, counted, flops, mfu),
        ],
    )


def _layout(counted: Mapping[str, Any]) -> str:
    axes = {axis: size for axis, size in counted["mesh"].items() if size > 1}
    if not axes:
        return "one device"
    share = (counted["parameters"] + counted["optimizer"]) / max(counted["checkpoint"], 1)
    mesh = " x ".join(f"{axis}={size}" for axis, size in axes.items())
    return f"{mesh}: each device holds {f'{share:.2%} of' if share < 1 else ''} the state".replace("  ", " ")


def _memory(
    hardware: Hardware, optimizer: OptimizerSection, counted: Mapping[str, Any], compiled: Mapping[str, Any] | None
) -> Memory:
    def size(value: float, source: str) -> Figure:
        return Figure(value, "counted", source)

    gradients, logits = counted["gradients"], counted["logits"]
    activations, others = counted["activations"], counted["copies"] + counted["logits"] + counted["gathered"]
    read_again = "what the backward pass of one micro-batch reads"
    state = counted["parameters"] + counted["frozen"] + counted["optimizer"] + counted["batch"]
    temporaries = size(others, "copies of weights, gradients of logits, gathered weights")
    if compiled is not None:
        # The peak is in the backward pass, while gradients come and activations go, so XLA needs less than their sum.
        # `extra_bytes` is that peak without the arguments. Gradients, logits and activations are taken from it in this
        # order, and the rest are temporaries.
        activations = max(min(activations, compiled["extra_bytes"] - gradients - logits), 0)
        read_again += ", as far as XLA keeps it in addition to the gradients"
        rest = max(compiled["extra_bytes"] - gradients - logits - activations, 0)
        temporaries = Figure(rest, "compiled", "XLA's temporaries without the rows above")
    extra = compiled["extra_bytes"] if compiled else gradients + activations + logits + others
    copy = process = None
    if hardware.platform == "cpu":
        copy = size(
            counted["parameters"] + counted["optimizer"],
            "the copy of the state that aifx writes while training continues",
        )
        if (resident := (compiled or counted).get("process_bytes")) is not None:
            by = "compiled" if compiled else "traced"
            source = f"the process that {by} this plan, plus {TRAINING_BYTES / 1e6:.0f} MB for data and checkpoints"
            process = Figure(resident + TRAINING_BYTES, "measured", source)
    total = state + extra + sum(part.value for part in (copy, process) if part)
    whole = size(total, "the sum of the rows above")
    if compiled is not None:
        beside = ", the process and the checkpoint copy" if process else ""
        whole = Figure(total, "compiled", f"XLA's arguments and temporaries{beside}")
    capacity = capacity_of(hardware, (compiled or {}).get("room_bytes"))
    return Memory(
        parameters=size(counted["parameters"] + counted["frozen"], "shapes of the parameters"),
        optimizer=size(counted["optimizer"], f"shapes of the state of {optimizer.kind}"),
        gradients=size(gradients, "shapes of the weights"),
        activations=size(activations, read_again),
        logits=size(logits, "the largest array with an axis of the model's outputs"),
        temporaries=temporaries,
        batch=size(counted["batch"], "shapes of a batch"),
        checkpoint_copy=copy,
        process=process,
        total=whole,
        capacity=capacity,
        headroom=Figure(capacity.value - total, whole.basis, "capacity minus total"),
    )


def capacity_of(hardware: Hardware, room_bytes: int | None = None) -> Figure:
    """The memory of one device that a run may use."""
    if hardware.capacity_bytes is None:
        room = (room_bytes or psutil.virtual_memory().available) / hardware.num_devices
        return Figure(room, "measured", "memory of this machine that is available now")
    if hardware.platform == "tpu":
        source = f"{hardware.capacity_bytes / (1 << 30):g} GiB of each device, less what the TPU runtime keeps"
        return Figure(hardware.capacity_bytes - TPU_RESERVED_BYTES, "nameplate", source)
    share = GPU_MEMORY_SHARE
    if os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"):
        share = float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
    source = f"{share:.0%} of {hardware.capacity_bytes / 1e9:g} GB, which JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION)"
    return Figure(share * hardware.capacity_bytes, "nameplate", source)


def _bytes_moved(counted: Mapping[str, Any], compiled: Mapping[str, Any] | None) -> Figure:
    """Bytes that one device moves in a step."""
    if compiled and not compiled["traffic"]["unknown_loops"]:
        traffic = compiled["traffic"]
        source = "operands and results of XLA's program, with each iteration of a loop"
        return Figure(traffic["product_bytes"] + traffic["other_bytes"], "compiled", source)
    source = f"state and gradients once for the update, activations {PASSES} times"
    return Figure(elementwise_bytes(counted), "estimated", source)


def _disk(checkpoint: CheckpointSection, counted: Mapping[str, Any], runs_path: Path) -> Disk:
    size = counted["checkpoint"]
    free = shutil.disk_usage(runs_path if runs_path.is_dir() else runs_path.parent).free
    kept = checkpoint.keep_last + checkpoint.keep_best
    return Disk(
        checkpoint_bytes=Figure(size, "counted", "parameters and optimizer state, before compression"),
        kept=kept,
        free_bytes=Figure(free, "measured", "the disk of the project's runs"),
        fitting=Figure(free // max(size, 1), "counted", "free space divided by the size of a checkpoint"),
    )


def _notes(
    hardware: Hardware,
    model: ModelSection,
    counted: Mapping[str, Any],
    compiled: Mapping[str, Any] | None,
    memory: Memory,
) -> list[str]:
    notes = []
    if hardware.processes > 1:
        notes.append(f"{hardware.name} needs {hardware.processes} processes, one per host")
    if memory.headroom.value < 0 and hardware.num_devices > 1 and counted["mesh"]["fsdp"] == 1:
        notes.append(f"--set mesh.fsdp={hardware.num_devices} divides the state among the devices; --fit searches")
    for op, implementation in counted.get("asked", {}).items():
        notes.append(f"{op} is planned as {implementation}: cuDNN isn't installed here")
    if hardware.platform != "cpu" and isinstance(model, LayeredSection) and not model.scan_layers:
        notes.append("planned with model.scan_layers = true, which compiles faster; the project unrolls its layers")
    if compiled and compiled["traffic"]["unknown_loops"]:
        notes.append("this compiler doesn't say how often loops turn: bytes per step are estimated")
    return notes


def _notes_on_time(
    hardware: Hardware, counted: Mapping[str, Any], flops: float, mfu: tuple[float, str] | None
) -> Iterator[str]:
    if uncounted := counted["uncounted"]:
        names = ", ".join(f"{count} {name}" for name, count in uncounted.items())
        yield (
            "operations are missing: of a loop whose turns are known only when it runs, one turn counts, and of a "
            f"kernel that declares no cost_estimate, nothing ({names} in the traced step)"
        )
    if hardware.chip is None:
        if mfu is not None and mfu[0] > 1:
            yield f"MFU is unknown: it would be {mfu[0]:.0%} of {mfu[1]}, which is an estimate of the peak"
        return
    if mfu is not None and mfu[0] > 1:
        yield (
            f"time is unknown: MFU would be {mfu[0]:.0%}, and no device exceeds its peak. The step counts {flops:.4g} "
            f"operations, the model's formula {counted['model_flops']:.4g}"
        )
    if hardware.chip.name not in published_chips():
        yield f"no rate of {hardware.chip.name} is among the published ones that intervals of time come from"


def usable_cores() -> int:
    """The processor cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
