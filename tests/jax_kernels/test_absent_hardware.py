"""Each kernel compiles, forward and backward, for hardware that is not here: really compiled, to the last register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jax_kernels.attention.cases import COMPILED_CASES

SCRIPT = Path(__file__).with_name("compile_absent.py")
ROOT = Path(__file__).parents[2]
LIMIT_S = 300

TARGETS = {"pallas_triton": ("h100", "a100"), "pallas_mosaic_gpu": ("h100",), "pallas_tpu": ("v5e", "v5p", "v6e")}
FORMS = [(form, target) for form, targets in TARGETS.items() for target in targets]


def compile_absent(*arguments: str, warn: str = "error") -> subprocess.CompletedProcess[str]:
    """A form that gives way warns, which is an error here: what was compiled would not be it."""
    command = [sys.executable, "-W", f"{warn}:attention", SCRIPT, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)


@pytest.mark.compilers
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", [case.name for case in COMPILED_CASES])
@pytest.mark.parametrize(("form", "target"), FORMS, ids=[f"{form} for {target}" for form, target in FORMS])
def test_attention_compiles(form: str, target: str, case: str, dtype: str) -> None:
    done = compile_absent("attention", form, target, case, dtype)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kernels"] >= 3  # forward, and two or more for the gradients
