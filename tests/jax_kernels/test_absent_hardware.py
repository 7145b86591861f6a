"""Each kernel compiles, as training or generation runs it, for hardware that is not here: really, to the last register.

Every case is compiled in the op's first type and one of them in the others, as the best guess has it. EVERY=1 compiles
every case in every type, and what `aifx kernels tune` may choose from besides. FEWER=1 compiles every case for one GPU
and one TPU, and for the others the case that comes in all types.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from compile_apart import compile_apart

from jax_kernels.forms import make_device
from jax_kernels.linear_cross_entropy import LINEAR_CROSS_ENTROPY
from jax_kernels.op import Op
from jax_kernels.ops import OPS, compiled_cases, dtypes

LIMIT_S = 300
EVERY = os.environ.get("EVERY") == "1"
FEWER = os.environ.get("FEWER") == "1" and not EVERY

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
WITH_EVERY_CASE = ("h100", "v5e") if FEWER else tuple(DEVICES)


def programs() -> list[object]:
    """What is to be compiled: op, form, target, case and dtype."""
    return [
        pytest.param(op, form, target, case, dtype, id=f"{op.name}, {form} for {target}, {case.name}, {dtype}")
        for op in OPS.values()
        for form in op.forms
        for target in TARGETS.get(form, ())
        for case in compiled_cases(op)[0 if target in WITH_EVERY_CASE else -1 :]
        for dtype in dtypes(op)[: None if EVERY or case is compiled_cases(op)[-1] else 1]
    ]


@pytest.mark.compilers
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize(("op", "form", "target", "case", "dtype"), programs())
def test_a_kernel_compiles(op: Op, form: str, target: str, case: Any, dtype: str) -> None:
    told = compile_apart(op.name, form, target, case.name, dtype, EVERY, limit_s=LIMIT_S)
    if told["refuses"] is not None:
        pytest.skip(f"it refuses: {told['refuses']}")
    assert told["compiled"]
    assert all(config["kernels"] for config in told["compiled"])
    if op is LINEAR_CROSS_ENTROPY and case.tokens > 4000:
        # Of the logits, a few chunks at a time. v6e's compiler forms the weight's gradient transposed, and copies it.
        copied = 2 * case.embed * case.vocab if target == "v6e" else 0
        held = max(config["temporary_bytes"] for config in told["compiled"])
        assert held < 0.25 * 4 * case.tokens * case.vocab + copied


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_a_kernel_takes_what_it_is_for(op: Op) -> None:
    """A kernel that refused every case would compile nothing above, and fail nothing."""
    for form, targets in TARGETS.items():
        for case in compiled_cases(op) if form in op.forms else ():
            for target in targets:
                assert op.forms[form].refuses(case.call(dtypes(op)[0]), DEVICES[target]) is None, (form, target)
