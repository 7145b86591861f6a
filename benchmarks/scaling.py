"""Predictions of `aifx plan` for large models on many devices: the tables of docs/explanation/scaling.md.

    python benchmarks/scaling.py [reach] [weak] [limits] [--compile] [--json]

`reach` plans models of 8 and 70 billion parameters on 256 and 4,096 devices, `weak` grows the number of devices with
the batch, `limits` says how many tokens per device FSDP needs to compute longer than it gathers. Nothing is measured,
and no accelerator is needed; benchmarks/plan_published.py compares plans with rates that others measured.
With `--compile`, the steps of `reach` are compiled (libtpu; a few minutes each), with the attention that a TPU runs
once it has verified it; otherwise they are traced and counted, as those of `weak` always are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.commands.plan.command import between, count, percent, seconds
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.planning.figures import rates_of
from aifx.planning.hardware import find_hardware
from aifx.planning.network import Collective, network_of
from aifx.planning.plan import Plan
from aifx.planning.planner import make_plans
from aifx.planning.step_time import Assumptions


@dataclass(frozen=True)
class Case:
    """A model on some hardware.

    Attributes:
        rows: of each device; a fraction if several devices share a row.
    """

    preset: str
    hardware: str
    rows: float
    seq_len: int
    mesh: dict[str, int]


REACH = (
    Case("llama3-8b", "v5e-256", 1, 4096, {"fsdp": 256}),
    Case("llama3-8b", "v5e-256x16", 1, 4096, {"data": 16, "fsdp": 256}),
    Case("llama3-8b", "v5p-512", 1, 4096, {"fsdp": 256}),
    Case("llama3-8b", "v5p-8192", 1, 4096, {"data": 16, "fsdp": 256}),
    Case("llama3-8b", "h100x256", 1, 4096, {"fsdp": 256}),
    Case("llama3-8b", "h100x4096", 1, 4096, {"data": 16, "fsdp": 256}),
    Case("llama3-70b", "v5p-8192", 1, 4096, {"data": 16, "fsdp": 256}),
    Case("llama3-70b", "v5e-256x16", 0.25, 4096, {"data": 16, "fsdp": 64, "tensor": 4}),
    Case("llama3-70b", "h100x4096", 0.5, 4096, {"data": 32, "fsdp": 64, "tensor": 2}),
)

SLICES = (1, 2, 4, 16, 64)


def weak_cases() -> Iterator[Case]:
    """8 billion parameters, 4,096 tokens per device, from 256 devices on."""
    for slices in SLICES:
        name = "v5e-256" + (f"x{slices}" if slices > 1 else "")
        yield Case("llama3-8b", name, 1, 4096, {"data": slices, "fsdp": 256})
    for chips in (256, 1024, 4096):
        yield Case("llama3-8b", f"v5p-{2 * chips}", 1, 4096, {"data": chips // 256, "fsdp": 256})
    for slices in (2, 4):  # of 4,096 chips
        yield Case("llama3-8b", f"v5p-8192x{slices}", 1, 4096, {"data": 16 * slices, "fsdp": 256})
    for devices in (256, 1024, 4096, 16384):
        yield Case("llama3-8b", f"h100x{devices}", 1, 4096, {"data": devices // 256, "fsdp": 256})
    for devices in (256, 4096):  # each node holds the whole state
        yield Case("llama3-8b", f"h100x{devices}", 1, 4096, {"data": devices // 8, "fsdp": 8})


LIMITS = ("v5e-256", "v5p-512", "v6e-256", "h100x8", "h100x256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["reach", "weak", "limits"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown tables")
    arguments = parser.parse_args()
    cases = {"reach": REACH, "weak": tuple(weak_cases())}
    document = {}
    for name in arguments.tables:
        with_compiler = arguments.compile and name != "weak"
        rows = limits() if name == "limits" else [row(case, with_compiler=with_compiler) for case in cases[name]]
        document[name] = rows
        if not arguments.json:
            sys.stdout.write(f"{markdown(rows)}\n\n")
            sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(json.dumps(document) + "\n")


def limits() -> list[dict[str, Any]]:
    """FSDP over all devices of some hardware: 8 P T / R seconds of computing against (2 x 2 + 4) P / B of links."""
    found = []
    for name in LIMITS:
        hardware = find_hardware(name)
        rate = rates_of(hardware, ["bfloat16"], 1).products["bfloat16"].value
        gigabyte_s, over = network_of(hardware).seconds(Collective("all-gather", 1e9, ()))
        found.append({
            "hardware": name,
            "R, TFLOP/s": round(rate / 1e12),
            "B, GB/s": round(1 / gigabyte_s),
            "over": over,
            "tokens per device": round(rate * gigabyte_s / 1e9),
        })  # fmt: skip
    return found


def row(case: Case, *, with_compiler: bool) -> dict[str, Any]:
    """The figures of a plan, per device. An error is the only field beside the case if there is no plan."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in case.mesh.items() if size > 1)
    named = {"model": case.preset, "hardware": case.hardware, "mesh": mesh, "tokens": round(case.rows * case.seq_len)}
    try:
        plan = plan_of(case, with_compiler=with_compiler)
    except Exception as error:
        return {**named, "error": str(error).splitlines()[0]}
    time = plan.time
    if time is None:
        return {**named, "error": plan.notes[-1]}
    sys.stderr.write(f"{named}: compiled in {plan.compile_s} s; {plan.not_compiled}\n")
    return {
        **named,
        "GB": round(plan.memory.total.value / 1e9, 2),
        "step": between(time.step_s, seconds),
        "links ms": round(1e3 * time.links_s.value, 1),
        "exposed ms": round(1e3 * time.exposed_s.value, 1),
        "tokens/s": between(time.units_per_s_per_device, count),
        "MFU": between(time.mfu, percent) if time.mfu else "",
        "predicted tokens/s": round(time.units_per_s_per_device.value),
    }


def plan_of(case: Case, *, with_compiler: bool) -> Plan:
    """The plan of a case. Raises AifxError if the mesh does not divide the model."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        devices = math.prod(case.mesh.values())
        model = {"preset": case.preset, "scan_layers": True, "remat": "full"}
        sections = {
            "data": {"vocab_size": 128256, "seq_len": case.seq_len},
            "model": model,
            "train": {"global_batch_size": round(case.rows * devices), "num_steps": 1000},
            "mesh": case.mesh,
        }
        if with_compiler and find_hardware(case.hardware).platform == "tpu":
            sections["kernels"] = {"attention": "pallas_tpu"}
        (project.root / "aifx.toml").write_text("\n".join(toml(name, values) for name, values in sections.items()))
        made = make_plans(
            project, load_config(project), [find_hardware(case.hardware)], Assumptions(), with_compiler=with_compiler
        )
        (plan,) = made.plans
        assert isinstance(plan, Plan)
        return plan


def toml(name: str, values: dict[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for one in rows for key in one))
    lines = [columns, ["---"] * len(columns), *([f"{one.get(key, '')}" for key in columns] for one in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
