"""Timing covers the device's work: as many calls as asked for, and nothing else."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from harness import jit

from jax_kernels import timing
from jax_kernels.implementations import Device
from jax_kernels.op import Op, TrainingProgram
from jax_kernels.ops import OPS, dtypes, small_cases
from jax_kernels.timing import Passes, repeated
from jax_kernels.tuning import relative_error

CPU = Device("cpu", "cpu")


def test_a_repeated_program_runs_as_often_as_asked() -> None:
    runs = []

    def program(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: runs.append(1) or x * 2, x, x)

    results, count = jax.jit(repeated(program, 7))(jnp.arange(3.0))
    assert results.tolist() == [0, 2, 4]
    assert (int(count), len(runs)) == (7, 7)


def test_its_work_stays_in_the_loop() -> None:
    """Its operands do not change, so XLA would compute it once, before the loop."""
    text = jax.jit(repeated(jnp.tanh, 50)).lower(jnp.ones((32, 32))).compile().as_text()
    (body,) = set(re.findall(r"body=%([\w.-]+)", text))
    loop, entry = text[text.index(f"\n%{body} (") :], text[text.index("\nENTRY") :]
    assert "tanh" in loop[: loop.index("\n}")]
    assert "tanh" not in entry
    assert 'known_trip_count":{"n":"50"}' in text


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_the_passes_compute_what_the_program_does(op: Op) -> None:
    call = small_cases(op)[0].call(dtypes(op)[-1])
    program, make = op.workload(call, op.implementations["xla"].run, op.implementations["xla"].configs(call, CPU)[0])
    arguments = make()
    assert relative_error(Passes(program, arguments)(), jit(program)(*arguments)) < 1e-6


def test_the_forward_pass_returns_no_operand_that_the_backward_pass_needs() -> None:
    """It would be copied, which a training does not do."""
    x, weight = jnp.ones((4, 8)), jnp.ones((8, 2))
    passes = Passes(TrainingProgram(lambda x, weight: jnp.exp(x @ weight)), ((x,), (weight,), jnp.ones((4, 2))))
    results, (gradient,) = passes()
    assert [leaf.shape for leaf in jax.tree.leaves(passes._forward(*passes._operands))] == [results.shape]
    assert jnp.allclose(gradient, results @ weight.T)


@pytest.mark.parametrize("is_short", [True, False])
def test_short_passes_are_repeated_on_the_device(is_short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORT_S", 1e6 if is_short else 0.0)
    traced: list[Any] = []

    def program(x: jax.Array) -> Any:
        traced.append(x)
        return x * 2

    forward_s, backward_s = Passes(program, (jnp.arange(3.0),)).time()
    assert backward_s is None
    assert forward_s > 0
    assert (len(traced) > 1) == is_short


def test_a_call_that_is_only_evaluated_keeps_nothing_for_a_backward_pass() -> None:
    @jax.custom_vjp
    def run(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: alone.append(1) or x, x, x)

    run.defvjp(lambda x: (x + 1, None), lambda _, d_out: (d_out,))
    alone: list[int] = []
    passes = Passes(TrainingProgram(run), ((jnp.ones(3),), (), jnp.ones(3)))
    passes.time()
    assert not alone
    passes.time(is_trained=False)
    assert alone
