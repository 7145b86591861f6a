"""The ceilings of `aifx bench hardware` against what NumPy's BLAS and C reach on the same CPU, in turn.

    python benchmarks/ceilings.py [--rounds 9] [--sizes 1024,2048] [--mib 256] [--cpu-time]

Products: each library of XLA (its default, Eigen) against `numpy.matmul` into a result that is there. Memory: each
operation of STREAM by XLA in place against a C loop (cc -O3 -march=native -fopenmp, benchmarks/stream.c): with ordinary
stores, with stores that pass the caches by (non-temporal), and in place. Bytes are counted as STREAM does, whatever
moves besides. Between turns it waits, since the threads of OpenBLAS and OpenMP spin for a while after their work. A
ratio is of medians: ours over the peer's.

    --cpu-time   seconds of the process's own CPU: for a busy machine, on one core (taskset -c 0 python ...)
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

REMOVED = [name for name in os.environ if name.startswith(("OPENBLAS_", "GOTO_", "OMP_", "MKL_"))]
for name in REMOVED:  # before NumPy reads them: its BLAS has all cores, as XLA has
    del os.environ[name]

import jax  # noqa: E402
import numpy as np  # noqa: E402

from aifx.workloads import ARRAYS, EIGEN, Product, Stream  # noqa: E402

GOALS = {"products": 0.95, "triad": 0.85}
TURN_S = 0.1
REST_S = 0.05

Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default="512,1024,2048", help="rows of the products")
    parser.add_argument("--mib", default="256", help="MiB of the two arrays of an operation in place")
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tell(f"jax {jax.__version__}, numpy {np.__version__}, {cores} cores; load {os.getloadavg()[0]:.1f}")
    if REMOVED:
        tell(f"unset: {', '.join(REMOVED)}")
    best: dict[str, float] = {}
    for size in map(int, arguments.sizes.split(",")):
        for name, rate in in_turn(products(size), arguments.rounds, clock).items():
            best[name] = max(best.get(name, 0.0), 2 * size**3 * rate)
            tell(f"product {size:>5}  {name:24} {2 * size**3 * rate / 1e9:8.1f} GFLOP/s")
    ours = max(rate for name, rate in best.items() if name != "numpy")
    judge("products", "the best sizes, NumPy", ours / best["numpy"])
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for mib in map(int, arguments.mib.split(",")):
            for op in ARRAYS:
                memory(op, mib << 20, library, arguments.rounds, clock)


def products(size: int) -> dict[str, Run]:
    device = jax.devices("cpu")[0]
    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    c = np.empty_like(a)
    return {
        "xla": Product(device, "float32", size),
        "xla, Eigen": Product(device, "float32", size, options=EIGEN),
        "numpy": lambda: np.matmul(a, b, out=c),
    }


def memory(op: str, num_bytes: int, library: ctypes.CDLL | None, rounds: int, clock: Callable[[], float]) -> None:
    stream = Stream(jax.devices("cpu")[0], op, num_bytes, num_bytes)
    runs: dict[str, Run] = {"xla": stream}
    arrays = [aligned(num_bytes // 8) for _ in range(3)]
    for suffix, label in (("", "C"), ("_nt", "C, past the caches"), ("_in", "C in place")):
        function = getattr(library, op + suffix, None) if library else None
        if function:
            runs[label] = c_run(function, arrays, stream.rounds)
    found = {name: stream.num_bytes * rate for name, rate in in_turn(runs, rounds, clock).items()}
    for name, rate in found.items():
        ratio = "" if name == "xla" else f"   xla {found['xla'] / rate:.2f} of it"
        tell(f"{op:6} {num_bytes >> 20:>4} MiB  {name:24} {rate / 1e9:8.1f} GB/s{ratio}")
    if stream.num_wrong():
        tell(f"{op}: XLA's results are wrong")
    if op == "triad" and len(found) > 1:
        judge("triad", "C", found["xla"] / found["C"])
        judge("triad", "the best of C", found["xla"] / max(rate for name, rate in found.items() if name != "xla"))


def c_run(function: Any, arrays: list[Any], rounds: int) -> Run:
    pointers = [array.ctypes.data for array in arrays]
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_float, ctypes.c_long, ctypes.c_long]
    function.restype = None
    return lambda: function(*pointers, -1.0, len(arrays[0]), rounds)


def build(folder: Path) -> ctypes.CDLL | None:
    """None, with a word, where there is no compiler that can."""
    compiler = shutil.which("cc")
    if compiler is None:
        tell("no C compiler: nothing to hold the memory against")
        return None
    path = folder / "stream.so"
    source = Path(__file__).with_name("stream.c")
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    done = subprocess.run([compiler, *flags, str(source), "-o", str(path)], capture_output=True, text=True)
    if done.returncode:
        tell(f"cc {' '.join(flags)} failed: {done.stderr.strip()[:300]}")
        return None
    return ctypes.CDLL(str(path))


def aligned(count: int) -> Any:
    """Of ones, at the begin of a large page: NumPy asks the kernel for such."""
    whole = np.empty(4 * count + (1 << 21), np.uint8)
    start = -whole.ctypes.data % (1 << 21)
    array = whole[start : start + 4 * count].view(np.float32)
    array[:] = 1
    return array


def in_turn(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Calls a second of each, the median over the rounds."""
    calls = {}
    for name, run in runs.items():
        jax.block_until_ready(run())
        started = time.perf_counter()
        jax.block_until_ready(run())
        calls[name] = max(1, round(TURN_S / (time.perf_counter() - started)))
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(REST_S)
            started = clock()
            result = None
            for _ in range(calls[name]):
                result = run()
            jax.block_until_ready(result)
            rates[name].append(calls[name] / (clock() - started))
    return {name: median(found) for name, found in rates.items()}


def judge(what: str, peer: str, ratio: float) -> None:
    goal = GOALS[what]
    tell(f"{what}: {ratio:.3f} of {peer} (goal {goal}: {'reached' if ratio >= goal else 'missed'})")


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
