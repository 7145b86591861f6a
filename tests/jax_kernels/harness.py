"""The parts that the tests of every op share: how far a result may be off, and where a kernel runs.

A kernel runs on its hardware where that is at hand (JAX_PLATFORMS=cuda make test ARGS=tests/jax_kernels), elsewhere in
its interpreter, which stands in for a device that the kernel takes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
import pytest

from jax_kernels.implementations import Device, current_device, interpreting, make_device
from jax_kernels.op import Op

# Each program runs once: LLVM's optimization would take longer than all that it computes.
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
)

EVERYWHERE = ("reference", "xla")
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Relative, by norm. float32 asks for the highest precision of its products."""

STAND_INS = {
    "pallas_triton": make_device("gpu", "NVIDIA H100 80GB HBM3"),
    "pallas_mosaic_gpu": make_device("gpu", "NVIDIA H100 80GB HBM3"),
    "pallas_tpu": make_device("tpu", "TPU v5 lite"),
}
"""The device that each kernel's interpreter stands in for."""


def relative_error(actual: object, expected: object) -> float:
    """By norm, over what is finite; what is not must be so in both."""
    wide_actual, wide_expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert wide_actual.shape == wide_expected.shape
    finite = np.isfinite(wide_expected)
    np.testing.assert_array_equal(np.isfinite(wide_actual), finite)
    difference = np.linalg.norm(wide_actual[finite] - wide_expected[finite])
    return float(difference / max(float(np.linalg.norm(wide_expected[finite])), 1e-30))


def kernel_device(implementation: str) -> Device:
    """The device that `running` has a kernel on; this one for an implementation that is none."""
    here = current_device()
    stand_in = STAND_INS.get(implementation, here)
    return here if here.platform == stand_in.platform else stand_in


THREADS = 8
"""Mosaic GPU's interpreter holds one of XLA's threads for each of a block's three warpgroups and for the kernel, and
waits forever where there is none left. There are as many as cores, or as NPROC says when JAX starts."""


def runnable(*implementations: str) -> list[str]:
    """Those of the kernels that this process can run: Mosaic GPU's on its hardware, or `in_another_process`."""
    has_threads = int(os.environ.get("NPROC", "0")) >= THREADS
    here = current_device().platform
    return [
        implementation
        for implementation in implementations
        if implementation != "pallas_mosaic_gpu" or has_threads or here == "gpu"
    ]


def in_another_process(file: str, only: str, limit_s: int = 500) -> None:
    """Run the tests of a file that pytest's `-k only` selects where there are threads enough."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", file, "-k", only]
    environment = {**os.environ, "NPROC": str(THREADS)}
    done = subprocess.run(command, env=environment, timeout=limit_s, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout, done.stdout


@contextlib.contextmanager
def running(op: Op, implementation: str, call: object) -> Iterator[None]:
    """Inside, a kernel that is traced runs on its hardware or in its interpreter. Skips what it says it cannot take."""
    device = kernel_device(implementation)
    is_here = device == current_device()
    with contextlib.nullcontext() if is_here else interpreting(device):
        if (refusal := op.implementations[implementation].unsupported_reason(call, device)) is not None:
            pytest.skip(f"{implementation} refuses: {refusal}")
        # The interpreter of another platform's kernels is a program for the CPU.
        with contextlib.nullcontext() if is_here else jax.default_device(jax.devices("cpu")[0]):
            yield
