"""Each kernel compiles, as training or generation runs it, for hardware that is not here: really, to the last register.

Every case is compiled in the op's first type and the last case in the others, in the first configuration.
`compiled_programs` lists the programs and the variables that select among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from compile_isolated import compile_isolated
from compiled_programs import TARGETS, Program, selected_programs, sources_digest
from effort import IS_LONG
from ptx import bulk_stores, overlapping_stores

from jax_kernels._ops.linear_cross_entropy import LINEAR_CROSS_ENTROPY
from jax_kernels.implementations import make_device
from jax_kernels.op import Op
from jax_kernels.ops import OPS, compiled_cases, dtypes

LIMIT_S = 300

DEVICES = {
    "h100": make_device("gpu", "NVIDIA H100 80GB HBM3"),
    "a100": make_device("gpu", "NVIDIA A100-SXM4-80GB"),
    "v5e": make_device("tpu", "TPU v5 lite"),
    "v5p": make_device("tpu", "TPU v5"),
    "v6e": make_device("tpu", "TPU v6 lite"),
}


@pytest.mark.slow
@pytest.mark.compilers
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("program", [pytest.param(program, id=program.name) for program in selected_programs()])
def test_a_kernel_compiles(program: Program, record_property: Callable[[str, object], None]) -> None:
    record_property("sources", sources_digest(program.op, program.implementation))
    told = compile_isolated(*program, IS_LONG, limit_s=LIMIT_S)
    if told["refuses"] is not None:
        pytest.skip(f"it refuses: {told['refuses']}")
    assert told["compiled"]
    assert all(config["kernels"] for config in told["compiled"])
    if program.implementation == "pallas_mosaic_gpu":
        assert bulk_stores(told["output"]) >= sum(config["kernels"] for config in told["compiled"])
        assert overlapping_stores(told["output"]) == []
    case: Any = next(case for case in compiled_cases(OPS[program.op]) if case.name == program.case)
    if program.op == LINEAR_CROSS_ENTROPY.name and case.tokens > 4000:
        # Of the logits, a few chunks at a time. v6e's compiler forms the weight's gradient transposed, and copies it.
        copied = 2 * case.embed * case.vocab if program.target == "v6e" else 0
        held = max(config["temporary_bytes"] for config in told["compiled"])
        assert held < 0.25 * 4 * case.tokens * case.vocab + copied


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_a_kernel_takes_what_it_is_for(op: Op) -> None:
    """A kernel that refused every case would compile nothing above, and fail nothing."""
    for implementation, targets in TARGETS.items():
        for case in compiled_cases(op) if implementation in op.implementations else ():
            for target in targets:
                assert (
                    op.implementations[implementation].unsupported_reason(case.call(dtypes(op)[0]), DEVICES[target])
                    is None
                ), (implementation, target)
