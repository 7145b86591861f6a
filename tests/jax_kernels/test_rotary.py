"""Each implementation of rotary against the definition in float64 NumPy; gradients against the float64 reference."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, TOLERANCE, jit, kernel_device, relative_error, running
from hypothesis import given
from hypothesis import strategies as st

from jax_kernels._ops.rotary import ROTARY, rotary
from jax_kernels._ops.rotary.cases import SMALL_CASES, Case

KERNELS = ("pallas_triton", "pallas_tpu")

SMALL_BLOCKS = {
    "pallas_triton": {"block_len": 4, "block_heads": 2, "num_warps": 4},
    "pallas_tpu": {"block_len": 16, "block_lanes": 128},
}
"""Block sizes of which small arrays, too, have several along each axis."""


def arrays(case, seed=0):
    """x and its angles."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(case.batch, case.length, case.heads, case.head_dim))
    angles_batch = case.call("float32").angles_batch
    return x, rng.uniform(0.0, 2.0 * np.pi, size=(angles_batch, case.length, case.head_dim // 2))


def defined(x, angles):
    """Pairs as complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, :, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def output_and_gradient(run, x, cos, sin):
    """The output and the gradient of a scalar that reads all of it."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)

    def scalar(x):
        out = run(x, cos, sin)
        return jnp.sum((out * weight).astype(cos.dtype)), out

    (_, out), gradient = jit(jax.value_and_grad(scalar, has_aux=True))(x)
    return [out, gradient]


def by(implementation):
    return lambda *operands: rotary(*operands, implementation=implementation)


def operands_of(case, dtype):
    x, angles = arrays(case)
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.asarray(x, dtype), jnp.asarray(np.cos(angles), wide), jnp.asarray(np.sin(angles), wide)


def assert_right(got, operands):
    with jax.enable_x64(True):
        exact = (jnp.asarray(np.asarray(x, np.float64)) for x in operands)
        want = output_and_gradient(by("reference"), *exact)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == operands[0].dtype
        assert relative_error(a, b) < TOLERANCE[a.dtype.name]


# The others differ in blocks, which kernels alone have.
CORNERS = ("packed", "no block divides the length", "one token", "one pair")


@pytest.mark.parametrize(
    "case",
    [case if case.name in CORNERS else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=[case.name for case in SMALL_CASES],
)
def test_values_and_gradient(case):
    with jax.enable_x64(True):
        operands = operands_of(case, "float64")
        want = output_and_gradient(by("reference"), *operands)
        assert relative_error(want[0], defined(*arrays(case))) < 1e-12
        for a, b in zip(output_and_gradient(by("xla"), *operands), want, strict=True):
            assert relative_error(a, b) < 1e-12


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_precision(implementation, dtype):
    operands = operands_of(Case("packed", 2, 37, 3, 64, is_packed=True), dtype)
    assert_right(output_and_gradient(by(implementation), *operands), operands)


@pytest.mark.covering(1, "implementation")
@pytest.mark.filterwarnings("error:rotary")
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("implementation", KERNELS)
def test_a_kernel(implementation, case):
    operands = operands_of(case, "float32")
    with running(ROTARY, implementation, case.call("float32")):
        got = output_and_gradient(by(implementation), *operands)
    assert_right(got, operands)


def in_small_blocks(implementation, case, dtype):
    operands, call = operands_of(case, dtype), case.call(dtype)
    with running(ROTARY, implementation, call):
        config = tuple(SMALL_BLOCKS[implementation].items())
        got = output_and_gradient(
            lambda *given: ROTARY.implementations[implementation].run(call, config, *given), *operands
        )
    assert_right(got, operands)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["angles shared", "packed"])
def test_many_blocks(implementation, dtype, is_packed):
    in_small_blocks(implementation, Case("drawn", 3, 37, 5, 64, is_packed), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
@examples(2)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    heads=st.integers(1, 9),
    # So that a block of 128 lanes holds whole heads.
    head_dim=st.sampled_from([2, 4, 8, 16, 32, 64, 128]),
    is_packed=st.booleans(),
    dtype=st.sampled_from([*TOLERANCE]),
)
def test_any_shape_by_a_kernel(implementation, batch, length, heads, head_dim, is_packed, dtype):
    case = Case("drawn", batch, length, heads, head_dim, is_packed)
    if (
        ROTARY.implementations[implementation].unsupported_reason(case.call(dtype), kernel_device(implementation))
        is None
    ):
        in_small_blocks(implementation, case, dtype)


@pytest.mark.slow
@examples(5)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 40),
    heads=st.integers(0, 9),
    half=st.integers(0, 70),
    is_packed=st.booleans(),
    dtype=st.sampled_from([*TOLERANCE]),
)
def test_any_shape(batch, length, heads, half, is_packed, dtype):
    operands = operands_of(Case("drawn", batch, length, heads, 2 * half, is_packed), dtype)
    assert_right(output_and_gradient(by("xla"), *operands), operands)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [*EVERYWHERE, *KERNELS])
def test_angles_are_not_differentiated(implementation):
    case = Case("packed", 2, 5, 2, 64, is_packed=True)
    x, cos, sin = operands_of(case, "float32")
    with (
        running(ROTARY, implementation, case.call("float32")) if implementation in KERNELS else contextlib.nullcontext()
    ):
        gradients = jax.grad(lambda *given: jnp.sum(by(implementation)(*given)), (0, 1, 2))(x, cos, sin)
    assert [bool(np.any(g)) for g in gradients] == [True, False, False]


GOOD = {"x": ((2, 5, 3, 8), "float32"), "cos": ((1, 5, 4), "float32"), "sin": ((1, 5, 4), "float32")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": ((5, 3, 8), "float32")}, "x:"),
        ({"x": ((2, 5, 3, 8), "int32")}, "x:"),
        ({"x": ((2, 5, 3, 9), "float32")}, "x:"),
        ({"cos": ((3, 5, 4), "float32")}, "cos:"),
        ({"cos": ((5, 4), "float32")}, "cos:"),
        ({"cos": ((1, 5, 8), "float32")}, "cos:"),
        ({"cos": ((1, 5, 4), "bfloat16")}, "cos:"),
        ({"sin": ((2, 5, 4), "float32")}, "sin:"),
        ({"sin": ((1, 5, 4), "float16")}, "sin:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    x, cos, sin = (jnp.zeros(*values.pop(name)) for name in ("x", "cos", "sin"))
    with pytest.raises(ValueError, match=f"^{named} expected"):
        rotary(x, cos, sin, **values)
