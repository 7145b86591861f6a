"""Properties of every op: its cases are calls of it, its implementations agree, and so do one and several devices."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from harness import jit, kernel_device, running
from jax.sharding import AbstractDevice, AbstractMesh

from jax_kernels.implementations import Device, make_device
from jax_kernels.op import Op, call_key
from jax_kernels.ops import OPS, benchmark_cases, compiled_cases, dtypes, read_key, small_cases
from jax_kernels.tuning import TOLERANCE, relative_error

every_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
CPU = Device("cpu", "cpu")


@pytest.mark.slow
@every_op
def test_cases_are_calls(op: Op) -> None:
    cases = [*benchmark_cases(op, "cpu"), *benchmark_cases(op, "gpu"), *compiled_cases(op), *small_cases(op)]
    assert len({case.name for case in cases}) > 2
    for case in cases:
        call = case.call(dtypes(op)[0])
        assert isinstance(call, op.call)
        assert read_key(call_key(op.name, call)) == (op, call)
        program, make = op.workload(
            call, op.implementations["xla"].run, op.implementations["xla"].configs(call, CPU)[0]
        )
        assert jax.tree.leaves(jax.eval_shape(program, *jax.eval_shape(make)))
        assert op.work(call).num_bytes > 0
        assert str(call)


@every_op
def test_xla_and_the_reference_take_every_call_everywhere(op: Op) -> None:
    for case in small_cases(op):
        for implementation in ("reference", "xla"):
            assert op.implementations[implementation].unsupported_reason(case.call(dtypes(op)[-1]), CPU) is None
    for order in op.preference.values():
        assert "xla" in order


@pytest.mark.representative("XLA computes what the reference does")
@every_op
def test_xla_computes_what_the_reference_computes(op: Op) -> None:
    for dtype in dtypes(op):
        call = small_cases(op)[0].call(dtype)
        results = []
        for implementation in ("reference", "xla"):
            program, make = op.workload(
                call, op.implementations[implementation].run, op.implementations[implementation].configs(call, CPU)[0]
            )
            results.append(jit(program)(*make()))
        assert relative_error(*results) < TOLERANCE[dtype]


TRACED = {"pallas_tpu": ("tpu", "TPU v5 lite"), "pallas_mosaic_gpu": ("gpu", "NVIDIA H100 80GB HBM3")}
"""Kernels whose interpreters call back to the host, which `jax.checkpoint` does not allow, and their devices."""

CHECKPOINTED = [
    (op, implementation)
    for op in OPS.values()
    for implementation in op.implementations
    if "cudnn" not in implementation and implementation != "reference"
]


@pytest.mark.slow
@pytest.mark.parametrize(("op", "implementation"), CHECKPOINTED, ids=lambda value: getattr(value, "name", value))
def test_the_gradient_under_jax_checkpoint(op: Op, implementation: str) -> None:
    """The way forward runs again on the way back, and the gradient is the same."""
    dtype = (
        "bfloat16" if implementation == "pallas_mosaic_gpu" else "float32" if "float32" in dtypes(op) else dtypes(op)[0]
    )
    device = make_device(*TRACED[implementation]) if implementation in TRACED else kernel_device(implementation)
    calls = [case.call(dtype) for case in (*small_cases(op), *compiled_cases(op))]
    call = next(call for call in calls if op.implementations[implementation].unsupported_reason(call, device) is None)
    run = partial(
        op.implementations[implementation].run, call, op.implementations[implementation].configs(call, device)[0]
    )

    def gradient(run: Callable[..., Any]) -> Callable[..., Any]:
        program, make = op.workload(call, lambda call, config, *operands: run(*operands), ())
        if op.name not in ("decode_attention", "quantized_matmul"):
            return program
        # Their workload is the way forward alone.
        wanted = [i for i, x in enumerate(jax.eval_shape(make)) if x.dtype == "float32"]
        return jax.grad(lambda *arguments: program(*arguments).astype("float32").sum(), wanted)

    once, again = gradient(run), gradient(jax.checkpoint(run))
    _, make = op.workload(call, op.implementations[implementation].run, ())
    if implementation in TRACED:
        absent = AbstractDevice(device_kind=device.kind, num_cores=None, platform=device.platform)
        with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=absent)):
            assert kernels_of(again, make) >= kernels_of(once, make) > 0
        return
    with running(op, implementation, call):
        arguments = make()
        assert relative_error(jit(again)(*arguments), jit(once)(*arguments)) < 1e-6


def kernels_of(program: Callable[..., Any], make: Callable[[], Any]) -> int:
    return len(re.findall(r"pallas_call\[|kernel_name=", str(jax.make_jaxpr(program)(*jax.eval_shape(make)))))


MAPPED = """
import json, traceback
from dataclasses import replace
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax_kernels.dispatch import Choices, run, using
from jax_kernels.implementations import Device
from jax_kernels.ops import OPS, dtypes, small_cases
from jax_kernels.tuning import relative_error

mesh = Mesh(np.array(jax.devices()), ("data",))

# By op: the field of a call that grows with the batch, and the axis along which each operand and result is cut. None:
# every device has all of an operand, and adds its part of a result.
CUTS = {
    "attention": ("batch", (0, 0, 0, None, 0), (0, 0)),
    "decode_attention": ("batch", (0, None, None, 0, 0), (0, 0)),
    "layer_norm": ("rows", (0, None, None, 0), (0, 0)),
    "linear_cross_entropy": ("tokens", (0, None, 0), None),
    "quantized_matmul": ("m", (0, None, 0, None), (0,)),
    "rms_norm": ("rows", (0, None, None, 0), (0, 0)),
    "rotary": ("batch", (0, None, None), (0,)),
    "swiglu": ("tokens", (0, None, None), (0,)),
}

def check_mapped(op):
    dtype = "float32" if "float32" in dtypes(op) else dtypes(op)[0]
    field, operand_axes, result_axes = CUTS[op.name]
    calls = [case.call(dtype) for case in small_cases(op)]
    call = [call for call in calls if getattr(call, field) % 2 == 0 and getattr(call, "angles_batch", 1) == 1][-1]
    share_of = replace(call, **{field: getattr(call, field) // 2})
    result_axes = result_axes or ((0,) if call.reduction == "none" else (None,))
    spec = lambda axis: PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "data")
    alone = lambda call, config, *operands: op.implementations["xla"].run(call, op.implementations["xla"].configs(call,
    CPU)[0], *operands)

    def mapped(call, config, *operands):
        def share(*operands):
            results = run(op, share_of, "auto", *operands)
            each = results if isinstance(results, tuple) else (results,)
            added = [jax.lax.psum(x, "data") if axis is None else x for x, axis in zip(each, result_axes)]
            return tuple(added) if isinstance(results, tuple) else added[0]
        specs = tuple(map(spec, result_axes))
        out_specs = specs if len(specs) > 1 else specs[0]
        return jax.shard_map(share, mesh=mesh, in_specs=tuple(map(spec, operand_axes)), out_specs=out_specs)(*operands)

    program, make = op.workload(call, alone, ())
    arguments = make()
    expected = jax.jit(program)(*arguments)
    program, _ = op.workload(call, mapped, ())
    with using(Choices()) as choices:
        actual = jax.jit(program)(*arguments)
    assert [call for _, call in choices.seen_calls.values()] == [share_of]
    assert relative_error(actual, expected) < 1e-4

assert jax.device_count() == 2
CPU = Device("cpu", "cpu")
failures = {}
for op in OPS.values():
    try:
        check_mapped(op)
        failures[op.name] = ""
    except Exception:
        failures[op.name] = traceback.format_exc()
print(json.dumps(failures))
"""


@pytest.fixture(scope="module")
def failures_on_two_devices() -> dict[str, str]:
    """The traceback of each op whose check fails, otherwise an empty text. One process imports JAX for all of them."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MAPPED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@every_op
def test_a_call_inside_the_users_shard_map_computes_its_share(failures_on_two_devices: dict[str, str], op: Op) -> None:
    assert not failures_on_two_devices[op.name]
