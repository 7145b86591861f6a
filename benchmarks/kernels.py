"""The kernels of jax_kernels against jax.nn, tokamax and the reference of each op, by `aifx bench kernels`.

    python benchmarks/kernels.py [--rounds 2] [--op attention ...]

Ours is the fastest of an op's own implementations on this device, the reference (`reference`, what one would write)
and cuDNN not among them. A round is a launch of the bench, which times all implementations and peers of a case in turn.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import side_by_side
from side_by_side import AIFX, Runs, Work

from aifx.benchmarking.watch import watch_machine
from aifx.core.logs import LineHandler, log_to

if TYPE_CHECKING:
    from aifx.benchmarking.results import Report, Result

PEERS = {
    "reference": "the reference",
    "jax.nn": "jax.nn",
    "tokamax": "tokamax",
    "cudnn": "cuDNN",
    "cudnn_masked": "cuDNN with a mask",
    "products": "its three products alone",
}
GOALS = {
    ("attention, 8 heads of 64, float32", "jax.nn"): 1.7,
    ("attention, 12 heads of 64, bfloat16", "cudnn"): 0.9,
    ("attention, llama3-8b, bfloat16", "cudnn"): 0.9,
    # 1.4 of its time, for 0.35 of its memory
    ("linear_cross_entropy, gpt2-124m, each token, float32", "reference"): 0.71,
    ("linear_cross_entropy, gpt2-124m, float32", "reference"): 0.91,  # 1.1 of it
    ("linear_cross_entropy, gpt2-124m, bfloat16", "products"): 0.75,
    ("linear_cross_entropy, llama3-8b, bfloat16", "products"): 0.75,
}


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=2, quick_rounds=1)
    parser.add_argument("--op", action="append", default=[], help="only this op; can be repeated")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        options = ["--launches", str(side_by_side.rounds_of(arguments)), "--output", str(output)]
        options += [part for op in arguments.op for part in ("--op", op)] + ["--quick"] * arguments.quick
        environ = {**os.environ, "AIFX_CACHE_DIR": str(Path(folder) / "cache")}
        runs = Runs({})
        with log_to(LineHandler(runs.notes.append)), watch_machine():
            done = subprocess.run([*AIFX, "bench", "kernels", *options], env=environ, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"aifx bench kernels ended with {done.returncode}")
        from aifx.benchmarking.results import read_report

        measured = read_report(output)
    rows = list(rows_of(measured))
    absent = {} if any(one["against"] == "tokamax" for one in rows) else {"tokamax": absence(measured)}
    versions = side_by_side.installed("jax", "tokamax")
    found = side_by_side.document("kernels", rows, arguments, runs, versions=versions, absent=absent)
    side_by_side.report({**found, "samples_s": measured.document()["results"]}, arguments)


def rows_of(measured: Report) -> Iterator[dict[str, Any]]:
    cases: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in measured.results:
        case = (result.name.partition(".")[2], str(result.params["case"]), str(result.params["dtype"]))
        cases.setdefault(case, {})[str(result.params["implementation"])] = result
    for (op, case, dtype), implementations in cases.items():
        own = [result for implementation, result in implementations.items() if implementation not in PEERS]
        if not own:
            continue
        ours = min(own, key=lambda result: result.median_s)
        for implementation, words in PEERS.items():
            if implementation in implementations:
                what = f"{op}, {case}, {dtype}"
                work = Work(implementation, what, GOALS.get((what, implementation)))
                yield side_by_side.row(work, ours.samples_s, implementations[implementation].samples_s, words)


def absence(measured: Report) -> str:
    """The reason that tokamax has no row."""
    told = [note for note in measured.notes if "tokamax" in note]
    return "not installed" if any("not installed" in note for note in told) else "; ".join(told) or "none of these ops"


if __name__ == "__main__":
    main()
