"""What holds of every op: its cases are calls of it, its forms agree, and several devices compute what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import verified
from harness import jit

from jax_kernels.forms import Device
from jax_kernels.op import Op, call_key
from jax_kernels.ops import OPS, benchmark_cases, compiled_cases, dtypes, read_key, small_cases
from jax_kernels.tuning import TOLERANCE, relative_error

every_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
CPU = Device("cpu", "cpu")


@pytest.mark.sampled(3)
@every_op
def test_cases_are_calls(op: Op) -> None:
    cases = [*benchmark_cases(op, "cpu"), *benchmark_cases(op, "gpu"), *compiled_cases(op), *small_cases(op)]
    assert len({case.name for case in cases}) > 2
    for case in cases:
        call = case.call(dtypes(op)[0])
        assert isinstance(call, op.call)
        assert read_key(call_key(op.name, call)) == (op, call)
        program, make = op.workload(call, op.forms["xla"].run, op.forms["xla"].configs(call, CPU)[0])
        assert jax.tree.leaves(jax.eval_shape(program, *jax.eval_shape(make)))
        assert op.work(call).num_bytes > 0
        assert str(call)


@every_op
def test_xla_and_the_reference_take_every_call_everywhere(op: Op) -> None:
    for case in small_cases(op):
        for form in ("reference", "xla"):
            assert op.forms[form].refuses(case.call(dtypes(op)[-1]), CPU) is None
    for order in op.preference.values():
        assert "xla" in order


@pytest.mark.sampled(3)
@every_op
def test_xla_computes_what_the_reference_computes(op: Op) -> None:
    for dtype in dtypes(op):
        call = small_cases(op)[0].call(dtype)
        results = []
        for form in ("reference", "xla"):
            program, make = op.workload(call, op.forms[form].run, op.forms[form].configs(call, CPU)[0])
            results.append(jit(program)(*make()))
        assert relative_error(*results) < TOLERANCE[dtype]


DIVIDED = """
import json, sys, traceback
import jax, numpy as np
from jax.sharding import Mesh
from jax_kernels.choosing import Choices, run, using
from jax_kernels.dividing import Division
from jax_kernels.ops import OPS, dtypes, small_cases
from jax_kernels.tuning import relative_error

def check(op):
    division = Division(Mesh(np.array(jax.devices()), ("data",)), "data")
    dtype = "float32" if "float32" in dtypes(op) else dtypes(op)[0]
    cases = [case for case in small_cases(op) if op.rows(case.call(dtype), 2) is not None]
    assert cases, "no case can be divided"
    for case in cases[:: -(-len(cases) // int(sys.argv[1]))]:  # each is two programs to compile
        call = case.call(dtype)
        def through(call, config, *operands):
            return run(op, call, "auto", *operands)
        program, make = op.workload(call, through, ())
        arguments = make()
        alone = jax.jit(program)(*arguments)
        choices = Choices(division=division)
        with using(choices):
            text = jax.jit(lambda *a: program(*a)).lower(*arguments).compile()
            together = text(*arguments)
        assert [call for _, call in choices.met.values()] == [op.rows(call, 2).call], case.name
        assert relative_error(together, alone) < 1e-4, case.name

assert jax.device_count() == 2
failures = {}
for op in OPS.values():
    try:
        check(op)
        failures[op.name] = ""
    except Exception:
        failures[op.name] = traceback.format_exc()
print(json.dumps(failures))
"""


@pytest.fixture(scope="module")
def failures_on_two_devices() -> dict[str, str]:
    """The traceback of each op that fails, otherwise an empty text. One process imports JAX for all of them."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", DIVIDED, "1" if verified.is_sample() else "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@every_op
def test_two_devices_compute_what_one_does(failures_on_two_devices: dict[str, str], op: Op) -> None:
    assert not failures_on_two_devices[op.name]
