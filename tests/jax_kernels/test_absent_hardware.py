"""Each kernel compiles, as training or generation runs it, for hardware that is not here: really, to the last register.

Every case is compiled in the op's first type and one of them in the others, as the best guess has it. EVERY=1 compiles
every case in every type, and what `aifx kernels tune` may choose from besides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jax_kernels.forms import make_device
from jax_kernels.op import Op
from jax_kernels.ops import OPS, compiled_cases, dtypes

SCRIPT = Path(__file__).with_name("compile_absent.py")
ROOT = Path(__file__).parents[2]
LIMIT_S = 300
EVERY = os.environ.get("EVERY") == "1"

TARGETS = {
    "pallas_triton": ("h100", "a100"),
    "pallas_mosaic_gpu": ("h100",),
    "pallas_tpu": ("v5e", "v5p", "v6e"),
}
DEVICES = {
    "h100": make_device("gpu", "NVIDIA H100 80GB HBM3"),
    "a100": make_device("gpu", "NVIDIA A100-SXM4-80GB"),
    "v5e": make_device("tpu", "TPU v5 lite"),
    "v5p": make_device("tpu", "TPU v5"),
    "v6e": make_device("tpu", "TPU v6 lite"),
}


def programs() -> list[object]:
    """What is to be compiled: op, form, target, case and dtype."""
    return [
        pytest.param(op, form, target, case.name, dtype, id=f"{op.name}, {form} for {target}, {case.name}, {dtype}")
        for op in OPS.values()
        for form in op.forms
        for target in TARGETS.get(form, ())
        for at, case in enumerate(compiled_cases(op))
        for dtype in dtypes(op)[: None if EVERY or at == 0 else 1]
    ]


@pytest.mark.compilers
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize(("op", "form", "target", "case", "dtype"), programs())
def test_a_kernel_compiles(op: Op, form: str, target: str, case: str, dtype: str) -> None:
    command = [sys.executable, SCRIPT, op.name, form, target, case, dtype]
    command += ["all"] if EVERY else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    if told["refuses"] is not None:
        pytest.skip(f"it refuses: {told['refuses']}")
    assert told["compiled"]
    assert all(config["kernels"] for config in told["compiled"])


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_a_kernel_takes_what_it_is_for(op: Op) -> None:
    """A kernel that refused every case would compile nothing above, and fail nothing."""
    for form, targets in TARGETS.items():
        for case in compiled_cases(op) if form in op.forms else ():
            for target in targets:
                assert op.forms[form].refuses(case.call(dtypes(op)[0]), DEVICES[target]) is None, (form, target)
