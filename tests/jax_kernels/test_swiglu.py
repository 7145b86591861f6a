"""Each implementation of swiglu against the definition in float64 NumPy; gradients against the float64 reference."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, TOLERANCE, jit, kernel_device, relative_error, running
from hypothesis import given
from hypothesis import strategies as st

from jax_kernels._ops.swiglu import SWIGLU, swiglu
from jax_kernels._ops.swiglu.cases import SMALL_CASES, Case
from jax_kernels._ops.swiglu.gradient import activate, d_products

KERNELS = ("pallas_triton", "pallas_tpu")

SMALL_BLOCKS = {
    "pallas_triton": {"block_tokens": 16, "block_mlp": 32, "block_embed": 16, "num_warps": 4, "num_stages": 2},
    "pallas_tpu": {"block_tokens": 16, "block_mlp": 128, "block_embed": 128},
}
"""Block sizes of which small arrays, too, have several along each axis."""


def arrays(case, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(case.tokens, case.embed))
    gate, up = (rng.normal(size=(case.embed, case.mlp)) / math.sqrt(case.embed) for _ in range(2))
    return x, gate, up


def defined(x, gate, up):
    g = x @ gate
    return g / (1.0 + np.exp(-g)) * (x @ up)


def output_and_gradients(run, x, gate, up):
    """The output and the gradients of a scalar that reads all of it."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(x.shape[0], gate.shape[1])), x.dtype)

    def scalar(x, gate, up):
        out = run(x, gate, up)
        wide = jnp.promote_types(out.dtype, jnp.float32)
        return jnp.sum((out * weight).astype(wide)), out

    (_, out), gradients = jit(jax.value_and_grad(scalar, (0, 1, 2), has_aux=True))(x, gate, up)
    return [out, *gradients]


def by(implementation):
    return lambda *operands: swiglu(*operands, implementation=implementation)


def exact(operands):
    """Output and gradients of the reference, in float64, from operands that were rounded."""
    with jax.enable_x64(True):
        return output_and_gradients(by("reference"), *(jnp.asarray(np.asarray(x, np.float64)) for x in operands))


def assert_right(got, operands):
    for a, b in zip(got, exact(operands), strict=True):
        assert a.dtype == operands[0].dtype
        assert relative_error(a, b) < TOLERANCE[a.dtype.name]


# The others differ in blocks, which kernels alone have.
CORNERS = ("one token", "nothing divides", "one of each")


@pytest.mark.parametrize(
    "case",
    [case if case.name in CORNERS else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=[case.name for case in SMALL_CASES],
)
def test_values_and_gradients(case):
    with jax.enable_x64(True):
        operands = [jnp.asarray(x) for x in arrays(case)]
        want = output_and_gradients(by("reference"), *operands)
        assert relative_error(want[0], defined(*arrays(case))) < 1e-12
        for a, b in zip(output_and_gradients(by("xla"), *operands), want, strict=True):
            assert relative_error(a, b) < 1e-12


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_precision(implementation, dtype):
    operands = [jnp.asarray(x, dtype) for x in arrays(Case("odd", 70, 137, 131))]
    assert_right(output_and_gradients(by(implementation), *operands), operands)


@pytest.mark.covering(1, "implementation")
@pytest.mark.filterwarnings("error:swiglu")
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("implementation", KERNELS)
def test_a_kernel(implementation, case):
    operands = [jnp.asarray(x, jnp.float32) for x in arrays(case)]
    with running(SWIGLU, implementation, case.call("float32")):
        got = output_and_gradients(by(implementation), *operands)
    assert_right(got, operands)


def in_small_blocks(implementation, case, dtype):
    operands, call = [jnp.asarray(x, dtype) for x in arrays(case)], case.call(dtype)
    with running(SWIGLU, implementation, call):
        config = tuple(SMALL_BLOCKS[implementation].items())
        got = output_and_gradients(
            lambda *given: SWIGLU.implementations[implementation].run(call, config, *given), *operands
        )
    assert_right(got, operands)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", KERNELS)
def test_many_blocks(implementation, dtype):
    in_small_blocks(implementation, Case("drawn", 150, 256, 384), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
@examples(2)
@given(
    tokens=st.integers(1, 40), embed=st.integers(1, 300), mlp=st.integers(1, 300), dtype=st.sampled_from([*TOLERANCE])
)
def test_any_shape_by_a_kernel(implementation, tokens, embed, mlp, dtype):
    if (
        SWIGLU.implementations[implementation].unsupported_reason(
            Case("drawn", 1, 1, 1).call(dtype), kernel_device(implementation)
        )
        is None
    ):
        in_small_blocks(implementation, Case("drawn", tokens, embed, mlp), dtype)


@pytest.mark.slow
@examples(5)
@given(tokens=st.integers(0, 90), embed=st.integers(1, 90), mlp=st.integers(0, 90), dtype=st.sampled_from([*TOLERANCE]))
def test_any_shape(tokens, embed, mlp, dtype):
    operands = [jnp.asarray(x, dtype) for x in arrays(Case("drawn", tokens, embed, mlp))]
    assert_right(output_and_gradients(by("xla"), *operands), operands)


def written_by_kernels(implementation, program, *operands):
    """The number of arrays that each kernel of a program writes."""
    with running(SWIGLU, implementation, Case("drawn", 32, 16, 64).call("float32")):
        jaxpr = jax.make_jaxpr(program)(*operands)
    counts = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                counts.append(len(equation.outvars))
            else:
                for inner in equation.params.values():
                    if hasattr(inner, "eqns"):
                        visit(inner)

    visit(jaxpr)
    return counts


@pytest.mark.parametrize("implementation", KERNELS)
def test_the_products_are_kept_only_for_a_gradient(implementation):
    operands = [jnp.asarray(x, jnp.float32) for x in arrays(Case("drawn", 32, 16, 64))]
    assert written_by_kernels(implementation, by(implementation), *operands) == [1]
    total = jax.grad(lambda *given: jnp.sum(by(implementation)(*given)))
    assert written_by_kernels(implementation, total, *operands) == [3, 2]


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_a_gate_that_is_wide_open_or_shut(implementation):
    x = jnp.asarray([[-1e4], [-200.0], [0.0], [200.0], [1e4]], jnp.float32)
    one = jnp.ones((1, 1), jnp.float32)
    got = output_and_gradients(by(implementation), x, one, one)
    assert all(np.isfinite(a).all() for a in got)
    np.testing.assert_array_equal(got[0][:, 0], [0.0, 0.0, 0.0, 200.0**2, 1e8])


@pytest.mark.parametrize("implementation", [*EVERYWHERE, *KERNELS])
def test_a_gate_below_what_float16_holds_is_shut(implementation):
    """At g < -65,504, which is -inf in float16."""
    operands = [jnp.full(shape, value, "float16") for shape, value in (((1, 2), -300), ((2, 1), 300), ((2, 1), 0.5))]
    case = Case("shut", 1, 2, 1)
    if implementation == "pallas_tpu":  # which has no float16: the same of the functions that its kernels call
        g, u = jnp.asarray(-jnp.inf, "float16"), jnp.asarray(-300, "float16")
        values = [activate(g, u), *d_products(jnp.asarray(1, "float16"), g, u)]
    else:
        with running(SWIGLU, implementation, case.call("float16")):
            values = output_and_gradients(by(implementation), *operands)
    for value in values:
        np.testing.assert_array_equal(value, np.zeros(value.shape))


GOOD = {"x": ((4, 8), "float32"), "gate": ((8, 6), "float32"), "up": ((8, 6), "float32")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": ((2, 4, 8), "float32")}, "x:"),
        ({"x": ((4, 8), "int32")}, "x:"),
        ({"gate": ((6, 8), "float32")}, "gate:"),
        ({"gate": ((8,), "float32")}, "gate:"),
        ({"gate": ((8, 6), "bfloat16")}, "gate:"),
        ({"up": ((8, 7), "float32")}, "up:"),
        ({"up": ((8, 6), "float16")}, "up:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    x, gate, up = (jnp.zeros(*values.pop(name)) for name in ("x", "gate", "up"))
    with pytest.raises(ValueError, match=f"^{named} expected"):
        swiglu(x, gate, up, **values)
