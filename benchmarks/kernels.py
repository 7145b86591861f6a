"""The forms of each op against one another, jax.nn and tokamax: forward and backward, as training runs them.

    python benchmarks/kernels.py [--op attention] [--case NAME] [--dtype bfloat16] [--rounds 9]
    python benchmarks/kernels.py --ship     # measure every config of every form, write what wins into the package

Timings alternate between the forms, so that a machine that drifts tells on all. The table gives medians, the rate of
the products and of the least traffic that the call can do with, the memory that a program takes with its operands and
results, the ratio of XLA's time to each, and the share of the roofline. A form that refuses a case is listed with its
reason, a peer that is missing is named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
from functools import partial
from typing import Any

import jax
from kernel_peers import PEERS

from aifx.hardware import find_accelerator, peak_of
from jax_kernels.forms import current_device
from jax_kernels.op import Op, call_key
from jax_kernels.ops import OPS, benchmark_cases, dtypes
from jax_kernels.shipped import TABLES, file_name
from jax_kernels.tuning import time_in_turn, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=OPS, action="append", help="all of them when not given")
    parser.add_argument("--case", action="append", help="by name; all of this platform when not given")
    parser.add_argument("--dtype", help="bfloat16 on accelerators, float32 on a CPU when not given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ship", action="store_true", help="write the winners into jax_kernels/tables")
    arguments = parser.parse_args()
    device = current_device()
    winners = {}
    for name in arguments.op or OPS:
        asked = arguments.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
        dtype = asked if asked in dtypes(OPS[name]) else dtypes(OPS[name])[0]
        peak = peak_of(device.kind, device.platform, 1, dtype)
        formula = peak.formula if peak else "not known"
        sys.stdout.write(f"\n{device.kind}, jax {jax.__version__}, {dtype}; peak: {formula}\n")
        for case in benchmark_cases(OPS[name], device.platform):
            if arguments.case and case.name not in arguments.case:
                continue
            op, call = OPS[name], case.call(dtype)
            if arguments.ship:
                winners[call_key(name, call)] = tune(op, call, tell=lambda text: print(f"  {text}"))[0]
                print(f"{name}, {case.name}: {winners[call_key(name, call)]}")
            else:
                measure(op, case.name, call, arguments.rounds, peak.flops if peak else None)
    if arguments.ship:
        ship(winners)


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


def measure(op: Op, name: str, call: Any, rounds: int, peak_flops: float | None) -> None:
    sys.stdout.write(f"\n{op.name}: {name} ({call})\n")
    device, compiled, arguments = current_device(), {}, None
    contenders = {form: (f.run, f) for form, f in op.forms.items()} | {
        peer: (run, None) for peer, run in PEERS[op.name](call).items()
    }
    for contender, (run, form) in contenders.items():
        if form is not None and (refusal := form.refuses(call, device)):
            sys.stdout.write(f"  {contender:18} refuses: {refusal}\n")
            continue
        config = form.configs(call, device)[0] if form is not None else ()
        program, make = op.workload(call, run, config)
        arguments = make() if arguments is None else arguments
        try:
            compiled[contender] = jax.jit(program).lower(*arguments).compile()
        except Exception as error:  # the compilers' own types
            sys.stdout.write(f"  {contender:18} fails: {str(error).splitlines()[0][:100]}\n")
    seconds = time_in_turn({c: partial(program, *arguments or ()) for c, program in compiled.items()}, rounds)
    print_rows(op, call, compiled, {c: statistics.median(s) for c, s in seconds.items()}, peak_flops)


def print_rows(op: Op, call: Any, compiled: Any, medians: dict[str, float], peak_flops: float | None) -> None:
    work = op.work(call)
    accelerator = find_accelerator(current_device().kind)
    least = work.flops / peak_flops if peak_flops else 0.0
    if accelerator:
        least = max(least, work.num_bytes / (accelerator.memory_gb_s * 1e9))
    for contender, median in medians.items():
        memory = compiled[contender].memory_analysis()
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        columns = (
            f"{contender:18} {median * 1e3:9.3f} ms",
            f"{work.flops / median / 1e12:7.3f} TFLOP/s" if work.flops else " " * 15,
            f"{work.num_bytes / median / 1e9:7.1f} GB/s",
            f"{(peak - memory.alias_size_in_bytes) / 1e6:8.1f} MB",
            f"{medians['xla'] / median:5.2f} x xla",
            f"{least / median:6.1%} of the roofline" if least else "",
        )
        sys.stdout.write("  " + "  ".join(columns).rstrip() + "\n")


if __name__ == "__main__":
    main()
