"""Measure every config of every implementation here, and write the winners into the package's table of such devices.

    python benchmarks/ship_kernels.py [--op attention] [--case NAME] [--dtype bfloat16]

`aifx bench kernels` compares the implementations with each other, jax.nn and tokamax.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from typing import Any

import jax

from jax_kernels.builtin_configs import TABLES, file_name
from jax_kernels.implementations import Device, current_device
from jax_kernels.op import Choice, Op, call_key
from jax_kernels.ops import OPS, benchmark_cases, dtypes
from jax_kernels.trials import TrialProcess
from jax_kernels.tuning import check_or_time, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=OPS, action="append", help="all of them when not given")
    parser.add_argument("--case", action="append", help="by name; all of this platform when not given")
    parser.add_argument("--dtype", help="bfloat16 on accelerators, float32 on a CPU when not given")
    arguments = parser.parse_args()
    device = current_device()
    winners = {}
    for name in arguments.op or OPS:
        asked = arguments.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
        dtype = asked if asked in dtypes(OPS[name]) else dtypes(OPS[name])[0]
        for case in benchmark_cases(OPS[name], device.platform):
            if not arguments.case or case.name in arguments.case:
                call = case.call(dtype)
                winners[call_key(name, call)] = _winner(OPS[name], call, device)
                print(f"{name}, {case.name}: {winners[call_key(name, call)]}")
    ship(winners)


def _winner(op: Op, call: Any, device: Device) -> Choice:
    with TrialProcess(check_or_time) as trials:
        return tune(op, call, device, trials, tell=lambda text: print(f"  {text}"))[0]


def ship(winners: dict[str, Any]) -> None:
    """Write the table of this kind of device, beside what it holds of other calls."""
    device = current_device()
    path = TABLES / f"{file_name(device)}.json"
    before = json.loads(path.read_text())["winners"] if path.exists() else {}
    machine = platform.processor() or platform.machine()
    where = f"{machine}, jax {jax.__version__}, {datetime.datetime.now(datetime.UTC).date()}"
    new = {key: choice.document() | {"reason": f"{choice.reason} ({where})"} for key, choice in winners.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"device": device.kind, "winners": dict(sorted((before | new).items()))}, indent=1) + "\n"
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
