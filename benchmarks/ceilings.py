"""The ceilings that `aifx bench hardware` measures on this CPU, against what NumPy's BLAS and C reach.

    python benchmarks/ceilings.py [--rounds 9] [--quick] [--json] [--cpu-time]

Products: the faster of the two libraries of XLA against `numpy.matmul` into a result that is there, with all cores: the
variables that steer OpenBLAS and OpenMP are unset. Memory: operations of STREAM by XLA, each in an operand's place,
against C (stream.c, by cc -O3 -march=native -fopenmp) into an array of its own by ordinary stores, by stores that pass
the caches (non-temporal), and in an operand's place. Bytes are counted as STREAM does, whatever moves besides.

    --cpu-time   seconds of the processor, not of the clock: for a busy machine, on one core (taskset -c 0 python ...)
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import side_by_side
from side_by_side import Side, Told, Work

SIZES = (512, 1024, 2048)
QUICK_SIZES = (1024,)
NUM_BYTES = 1 << 28
"""Bytes of the two arrays of an operation in place, which `aifx bench hardware` takes for the main memory here."""

OPS = {"copy": 2, "scale": 2, "add": 3, "triad": 3}
FORMS = {"": "C", "_nt": "C, past the caches", "_in": "C, in place"}
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
STEERING = ("OPENBLAS_", "GOTO_", "OMP_", "MKL_", "GOMP_")

SAMPLES = 5
SAMPLE_S = 0.06
GOALS = {"product": 0.95, "triad": 0.85}


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=9, quick_rounds=3)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if arguments.side:
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        side_by_side.tell(lambda: SIDES[arguments.side](arguments.folder, sizes, clock))
        return
    with tempfile.TemporaryDirectory() as folder:
        absent = build(Path(folder))
        options = ["--folder", folder, *["--quick"] * arguments.quick, *["--cpu-time"] * arguments.cpu_time]
        everything = side_by_side.training_environment()
        environ = {name: value for name, value in everything.items() if not name.startswith(STEERING)}
        names = [name for name in SIDES if name not in absent]
        commands = {name: side_by_side.own(__file__, name, *options) for name in names}
        sides = [Side(name, side_by_side.process(command, environ)) for name, command in commands.items()]
        runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments))
    rows = []
    for size in sizes if "NumPy" in runs.told else ():
        work = Work(f"product {size}", f"product of {size} rows", GOALS["product"], 2 * size**3 / 1e9, "GFLOP")
        rows.append(side_by_side.versus(runs, work, "NumPy"))
    for op, arrays in OPS.items() if "C" in runs.told else ():
        work = Work(op, f"{op} of {NUM_BYTES >> 20} MiB", GOALS.get(op), arrays * NUM_BYTES / 2 / 1e9, "GB")
        for suffix, words in FORMS.items():
            if op + suffix in runs.told["C"][0]["seconds"]:
                rows.append(side_by_side.versus(runs, work, "C", thing=op + suffix, against=words))
    side_by_side.report(side_by_side.document("ceilings", rows, arguments, runs, absent=absent), arguments)


def build(folder: Path) -> dict[str, str]:
    """stream.so; or that C is absent, and why."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {"C": "there is no compiler (cc)"}
    source = Path(__file__).with_name("stream.c")
    command = [compiler, *FLAGS, str(source), "-o", str(folder / "stream.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"C": f"cc failed: {done.stderr.strip()[:200]}"} if done.returncode else {}


def ours(folder: str, sizes: tuple[int, ...], clock: Callable[[], float]) -> Told:
    import jax

    from aifx.machine.microbenchmarks import EIGEN, Product, Stream

    device = jax.devices("cpu")[0]
    seconds = {}
    for size in sizes:
        libraries = (Product(device, "float32", size, options=options) for options in (None, EIGEN))
        seconds[f"product {size}"] = min((timed(product, clock) for product in libraries), key=median)
    for op in OPS:
        stream = Stream(device, op, NUM_BYTES, NUM_BYTES)
        seconds[op] = [taken / stream.rounds for taken in timed(stream, clock)]
        assert stream.num_wrong() == 0, op
    return {"seconds": seconds, "versions": side_by_side.installed("jax", "jaxlib")}


def numpy(folder: str, sizes: tuple[int, ...], clock: Callable[[], float]) -> Told:
    import numpy as np

    seconds = {}
    for size in sizes:
        a, b = np.random.default_rng(0).random((2, size, size), np.float32)
        c = np.empty_like(a)
        seconds[f"product {size}"] = timed(lambda a=a, b=b, c=c: np.matmul(a, b, out=c), clock)
    return {"seconds": seconds, "versions": side_by_side.installed("numpy")}


def c(folder: str, sizes: tuple[int, ...], clock: Callable[[], float]) -> Told:
    library = ctypes.CDLL(f"{folder}/stream.so")
    arrays = [aligned(NUM_BYTES // 8) for _ in range(3)]
    pointers = [array.ctypes.data for array in arrays]
    rounds, seconds = 3, {}
    for op in OPS:
        for suffix in FORMS:
            if (function := getattr(library, op + suffix, None)) is None:
                continue
            function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_float, ctypes.c_long, ctypes.c_long]
            run = lambda function=function: function(*pointers, -1.0, len(arrays[0]), rounds)  # noqa: E731
            seconds[op + suffix] = [taken / rounds for taken in timed(run, clock)]
    return {"seconds": seconds, "versions": {"cc": compiler_version()}}


def compiler_version() -> str:
    """As the first line of `cc --version` ends with it."""
    done = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), "unknown").split()[-1]


def aligned(count: int) -> Any:
    """Ones from the beginning of a huge page on: NumPy asks the kernel for such pages, as `aifx` does."""
    import numpy as np

    whole = np.empty(4 * count + (1 << 21), np.uint8)
    start = -whole.ctypes.data % (1 << 21)
    array = whole[start : start + 4 * count].view(np.float32)
    array[:] = 1
    return array


def timed(run: Callable[[], Any], clock: Callable[[], float]) -> list[float]:
    """Seconds of a call, SAMPLES times, each a mean over calls for SAMPLE_S; as long before them to warm up."""

    def mean(calls: int) -> float:
        result: Any = None
        started = clock()
        for _ in range(calls):
            result = run()
        if hasattr(result, "block_until_ready"):
            result.block_until_ready()
        return (clock() - started) / calls

    mean(1)
    calls = max(1, round(SAMPLE_S / max(mean(1), 1e-6)))
    mean(calls)
    return [mean(calls) for _ in range(SAMPLES)]


SIDES = {"aifx": ours, "NumPy": numpy, "C": c}

if __name__ == "__main__":
    main()
