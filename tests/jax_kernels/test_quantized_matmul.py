"""Each implementation of quantized_matmul against float64 NumPy, within bounds that follow from the types."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, jit, relative_error, running
from hypothesis import given
from hypothesis import strategies as st

from jax_kernels._ops.quantized_matmul import (
    LONGEST_BLOCK,
    QUANTIZED_MATMUL,
    dequantize,
    quantize,
    quantized_linear,
    quantized_matmul,
)
from jax_kernels._ops.quantized_matmul.cases import DTYPES, SMALL_CASES, Case
from jax_kernels.implementations import interpreting, make_device

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest distance by which rounding to the nearest moves a number, relative to it."""

SMALLEST = 2.0**-24
"""Smallest number of float16 above zero: its steps do not shrink further."""

KERNELS = ("pallas_triton", "pallas_tpu")
DEVICES = {
    ("pallas_triton", "float8_e4m3fn"): make_device("gpu", "NVIDIA H100 80GB HBM3"),
    ("pallas_tpu", "float8_e4m3fn"): make_device("tpu", "TPU7x"),
}


def arrays(case, dtype, seed=0):
    """Operands with every number that their type has, and scales over some orders of magnitude."""
    rng = np.random.default_rng(seed)
    call = case.call(dtype)
    x, weight = (rng.integers(0, 256, shape).astype(np.uint8) for shape in ((call.m, call.k), (call.k, call.n)))
    if dtype != "int8":  # two of its 256 codes are NaN
        x, weight = (np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8) for codes in (x, weight))
    scales = (
        (rng.lognormal(size=shape) / 512).astype(np.float32)  # float16 holds what comes out
        for shape in ((call.m, call.x_blocks), (call.weight_blocks, call.column_blocks))
    )
    return [jnp.asarray(y) for y in (x.view(jnp.dtype(dtype)), weight.view(jnp.dtype(dtype)), *scales)]


def spread(scale, shape):
    """The scale of each number of an array."""
    for axis in (0, 1):
        scale = np.repeat(scale, shape[axis] // scale.shape[axis], axis=axis)
    return scale


def defined(call, x, weight, x_scale, weight_scale):
    """The product in float64, and how far an implementation may be from each of its numbers.

    With u = 2^-24 of float32: int8 is summed exactly in a block of scales; the sum is rounded to float32 (u), times two
    scales (2 u), and added to what there is, which rounds the total once a block at most. fp8 has 4 significant bits,
    so that float32 holds a product of two; k additions of them round, and an implementation may scale operands first
    (2 u more). Either is relative to the sum of what is added, without signs. Then the result is rounded to its type.
    """
    x, weight, x_scale, weight_scale = (np.asarray(y).astype(np.float64) for y in (x, weight, x_scale, weight_scale))
    x_wide, weight_wide = x * spread(x_scale, x.shape), weight * spread(weight_scale, weight.shape)
    exact = x_wide @ weight_wide
    if call.dtype == "int8":
        pieces = [slice(at, at + call.block_k) for at in range(0, call.k, call.block_k)]
        added = sum(np.abs(x_wide[:, at] @ weight_wide[at]) for at in pieces)
        error = (call.num_blocks + 3) * UNIT["float32"] * added
    else:
        added = np.abs(x_wide) @ np.abs(weight_wide)
        error = (call.k + call.num_blocks + 5) * UNIT["float32"] * added
        if jax.default_backend() == "gpu":
            # Hopper's units align 32 products to the largest of them and keep 14 bits (arXiv 2412.19437, 3.5.2).
            error += 32 * 2.0**-13 * added
    return exact, error + UNIT[call.out_dtype] * (np.abs(exact) + error) + SMALLEST / 2


def assert_within(actual, exact, error):
    difference = np.abs(np.asarray(actual).astype(np.float64) - exact)
    assert np.all(difference <= error), f"{np.max(difference / error)} times the bound"


@contextlib.contextmanager
def on_device(implementation, call):
    """Where an implementation runs: in the interpreter of a device that takes it if `running`'s does not."""
    if implementation in EVERYWHERE:
        yield
    elif (device := DEVICES.get((implementation, call.dtype))) is not None and jax.default_backend() == "cpu":
        with interpreting(device):
            assert QUANTIZED_MATMUL.implementations[implementation].unsupported_reason(call, device) is None
            yield
    else:
        with running(QUANTIZED_MATMUL, implementation, call):
            yield


def product(case, dtype, implementation, operands):
    with on_device(implementation, case.call(dtype)):
        return jit(
            lambda *operands: quantized_matmul(*operands, out_dtype=case.out_dtype, implementation=implementation)
        )(*operands)


@pytest.mark.covering(1)
@pytest.mark.filterwarnings("error:quantized_matmul")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("implementation", [*EVERYWHERE, *KERNELS])
def test_a_form(implementation, case, dtype):
    operands = arrays(case, dtype)
    if implementation == "pallas_tpu" and case.call(dtype).num_blocks > 1 and case.call(dtype).block_k % 128:
        pytest.skip("blocks of scales that 128 does not divide")
    out = product(case, dtype, implementation, operands)
    assert out.dtype == case.out_dtype
    assert_within(out, *defined(case.call(dtype), *operands))


@st.composite
def cases(draw, unit):
    """A call whose scales are laid in any way; where they change along k, each stays for a multiple of `unit`."""
    x_blocks, weight_blocks, column_blocks = (draw(st.sampled_from([1, 1, 2, 3])) for _ in range(3))
    num_blocks = int(np.lcm(x_blocks, weight_blocks))
    k = draw(st.integers(1, 70)) if num_blocks == 1 else num_blocks * unit * draw(st.integers(1, 40 // unit + 1))
    m, n = draw(st.integers(1, 40)), column_blocks * draw(st.integers(1, 30))
    weight_block = (k // weight_blocks, n // column_blocks)
    return Case("drawn", m, k, n, k // x_blocks, weight_block, draw(st.sampled_from(sorted(UNIT))))


@examples(8)
@given(case=cases(unit=1), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_any_call(case, dtype, seed):
    operands = arrays(case, dtype, seed)
    assert_within(product(case, dtype, "xla", operands), *defined(case.call(dtype), *operands))


@examples(2)
@given(case=cases(unit=1), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_any_call_of_the_gpu_kernel(case, dtype, seed):
    operands = arrays(case, dtype, seed)
    assert_within(product(case, dtype, "pallas_triton", operands), *defined(case.call(dtype), *operands))


@pytest.mark.representative("a kernel")
@examples(2)
@given(case=cases(unit=128), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_any_call_of_the_tpu_kernel(case, dtype, seed):
    operands = arrays(case, dtype, seed)
    assert_within(product(case, dtype, "pallas_tpu", operands), *defined(case.call(dtype), *operands))


BLOCKS = {
    "pallas_triton": {"block_m": 16, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 2, "k_last": 0},
    "pallas_triton, k last": {
        "block_m": 16,
        "block_n": 32,
        "block_k": 64,
        "num_warps": 4,
        "num_stages": 2,
        "k_last": 1,
    },
    "pallas_tpu": {"block_m": 32, "block_n": 128, "block_k": 128},
    "pallas_tpu, two scales a step": {"block_m": 96, "block_n": 256, "block_k": 256},
}


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(None, (None, 1)), (256, (128, 100)), (256, (256, 150))], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_many_blocks(name, scales):
    """More than run side by side, the last of them short, and scales for some, one or several of them along k."""
    case, implementation = Case("ragged", 150, 512, 300, *scales), name.split(",")[0]
    call, operands = case.call("int8"), arrays(case, "int8")
    with on_device(implementation, call):
        out = jit(QUANTIZED_MATMUL.implementations[implementation].run, static_argnums=(0, 1))(
            call, tuple(BLOCKS[name].items()), *operands
        )
    assert_within(out, *defined(call, *operands))


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", ["xla", *KERNELS])
def test_gradients(implementation, dtype):
    """By the scales, and by fp8 operands in their own type, as the reference's own differentiation has them."""
    case = Case("drawn", 5, 256, 12, 128, (256, 4), "float32")
    operands = arrays(case, dtype)
    # Times what brings the gradients of fp8 into its range.
    asked = jnp.asarray(512 * np.random.default_rng(1).normal(size=(case.m, case.n)), jnp.float32)
    of = (2, 3) if dtype == "int8" else (0, 1, 2, 3)

    def gradients(implementation):
        def scalar(*operands):
            return jnp.sum(quantized_matmul(*operands, out_dtype="float32", implementation=implementation) * asked)

        with on_device(implementation, case.call(dtype)):
            return jit(jax.grad(scalar, of))(*operands)

    for got, want, operand in zip(
        gradients(implementation), gradients("reference"), [operands[i] for i in of], strict=True
    ):
        assert got.dtype == operand.dtype
        got, want = (np.asarray(y).astype(np.float64) for y in (got, want))
        assert np.all(np.isfinite(want))
        assert relative_error(got, want) < (1e-5 if operand.dtype == jnp.float32 else 2.0**-4)


@pytest.mark.slow
@examples(10)
@given(
    dtype=st.sampled_from(DTYPES),
    source=st.sampled_from(["float32", "bfloat16", "float16"]),
    block=st.tuples(st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 1, 3, 6])),
    exponents=st.tuples(st.integers(-45, 38), st.integers(-45, 38)),
    zero=st.booleans(),
    seed=st.integers(0, 99),
)
def test_quantize(dtype, source, block, exponents, zero, seed):
    """Half a step at most, whatever the size of the numbers; the largest of a block is the type's largest."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(4, 6)) * 10.0 ** rng.integers(min(exponents), max(exponents) + 1, (4, 6))
    values[:2] *= not zero
    values = jnp.clip(jnp.asarray(values, "float32"), *(float(s * jnp.finfo(source).max) for s in (-1, 1))).astype(
        source
    )
    quantized, scale = jit(lambda x: quantize(x, dtype, block))(values)
    rows, columns = (length if size is None else size for size, length in zip(block, (4, 6), strict=True))
    assert quantized.dtype == dtype
    assert scale.dtype == jnp.float32
    assert scale.shape == (4 // rows, 6 // columns)
    assert np.all(np.asarray(scale) > 0.0)
    wide, codes = np.asarray(values).astype(np.float64), np.asarray(quantized).astype(np.float64)
    assert np.all(np.isfinite(codes))
    step = spread(np.asarray(scale, np.float64), (4, 6))
    assert np.all(np.abs(codes * step - wide) <= rounding(dtype, np.abs(wide), step))
    largest = np.abs(codes).reshape(4 // rows, rows, 6 // columns, columns).max((1, 3))
    normal = np.asarray(scale) > np.finfo(np.float32).tiny
    np.testing.assert_array_equal(largest[normal], 127 if dtype == "int8" else 448)
    assert relative_error(dequantize(quantized, scale), codes * step) < 1e-6


def rounding(dtype, size, scale):
    """The distance of numbers of this size from their quantized values: half a step, and of a float32 division u.

    Steps of int8 are the scale. Those of e4m3fn are 2^-3 of the power of two below the number, 2^-9 of the scale at the
    least; XLA may round to float16 on the way, which moves a number by 2^-11 of it and so over the middle of a step.
    """
    if dtype == "int8":
        return scale * (0.5 + 127 * 2 * UNIT["float32"])
    return np.maximum(size * (2.0**-4 + 2.0**-11 + 2.0**-22), scale * (2.0**-10 + 2.0**-22))


@pytest.mark.slow
@examples(4)
@given(
    dtype=st.sampled_from(DTYPES),
    blocks=st.tuples(*(st.sampled_from([1, 2, 3]) for _ in range(3))),
    m=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_quantized_against_the_float_product(dtype, blocks, m, seed):
    """x w - x' w' = (x - x') w + x' (w - w'): numbers are off by what `rounding` says, the op by its own bound."""
    rng = np.random.default_rng(seed)
    k, n = 12 * blocks[0] * blocks[1], 4 * blocks[2]
    x, weight = (rng.normal(size=shape) * rng.lognormal(size=shape) for shape in ((m, k), (k, n)))
    weight_block = (k // blocks[1], n // blocks[2])

    @jit
    def through(x, weight):
        (x, x_scale), (weight, scale) = quantize(x, dtype, (1, k // blocks[0])), quantize(weight, dtype, weight_block)
        return (x, weight, x_scale, scale), quantized_matmul(x, weight, x_scale, scale)

    operands, out = through(jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32))
    _, _, x_scale, scale = operands
    _, error = defined(Case("drawn", m, k, n, k // blocks[0], weight_block).call(dtype), *operands)
    x_error = rounding(dtype, np.abs(x), spread(np.asarray(x_scale, np.float64), x.shape))
    weight_error = rounding(dtype, np.abs(weight), spread(np.asarray(scale, np.float64), weight.shape))
    error = error + x_error @ np.abs(weight) + (np.abs(x) + x_error) @ weight_error
    error += 3 * UNIT["float32"] * np.abs(x) @ np.abs(weight)  # of x and weight as float32
    assert_within(out, x @ weight, error)


@pytest.mark.slow
def test_what_is_not_finite_shows():
    values = jnp.asarray([[1.0, jnp.inf], [1.0, 2.0], [jnp.nan, 0.0]])
    weight, scale = quantize(jnp.ones((2, 3)), "int8", (None, 1))
    out = quantized_matmul(*(lambda q, s: (q, weight, s, scale))(*quantize(values, "int8", (1, None))))
    np.testing.assert_array_equal(np.isfinite(out), [[False] * 3, [True] * 3, [False] * 3])


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["float32", "bfloat16"])
def test_quantized_linear(dtype, source):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 256)), source)
    weight, scale = quantize(jnp.asarray(rng.normal(size=(256, 24)), jnp.float32), dtype, (128, 8))

    def scalar(x, scale):
        out = quantized_linear(x, weight, scale)
        return jnp.sum(jnp.square(out.astype(jnp.float32))), out

    (_, out), gradients = jax.value_and_grad(scalar, (0, 1), has_aux=True)(x, scale)
    assert out.dtype == x.dtype
    exact = np.asarray(x).astype(np.float64) @ np.asarray(dequantize(weight, scale), np.float64)
    # Of each number of x the rounding, of random sign: half a step of 1/127 of some 3 deviations, or 2^-4 of it.
    assert relative_error(out, exact) < {"int8": 0.02, "float8_e4m3fn": 0.05}[dtype]

    def dequantized(x, scale):
        return jnp.sum(jnp.square(x.astype(jnp.float32) @ dequantize(weight, scale)))

    for got, want in zip(gradients, jax.grad(dequantized, (0, 1))(x, scale), strict=True):
        assert got.dtype == want.dtype
        assert relative_error(got, want) < {"int8": 0.02, "float8_e4m3fn": 0.05}[dtype]


def test_where_fp8_is_missing_another_implementation_runs_with_a_warning(caplog):
    case = Case("drawn", 4, 64, 16)
    operands = arrays(case, "float8_e4m3fn")
    want = quantized_matmul(*operands, implementation="xla")
    for implementation, kind in (("pallas_triton", "NVIDIA A100-SXM4-80GB"), ("pallas_tpu", "TPU v5 lite")):
        device = make_device("gpu" if implementation == "pallas_triton" else "tpu", kind)
        with interpreting(device):
            got = quantized_matmul(*operands, implementation=implementation)
        assert re.search(r"float8_e4m3fn.* xla$", caplog.messages[-1])
        np.testing.assert_array_equal(got, want)


GOOD = {
    "x": ((4, 64), "int8"),
    "weight": ((64, 6), "int8"),
    "x_scale": ((4, 2), "float32"),
    "weight_scale": ((4, 3), "float32"),
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": ((64,), "int8")}, "x:"),
        ({"x": ((4, 64), "float32")}, "x:"),
        ({"x": ((4, 64), "float8_e5m2")}, "x:"),
        ({"weight": ((63, 6), "int8")}, "weight:"),
        ({"weight": ((64, 6), "uint8")}, "weight:"),
        ({"weight": ((64, 6), "float8_e4m3fn")}, "weight:"),
        ({"x_scale": ((4,), "float32")}, "x_scale:"),
        ({"x_scale": ((3, 2), "float32")}, "x_scale:"),
        ({"x_scale": ((4, 3), "float32")}, "x_scale:"),
        ({"x_scale": ((4, 0), "float32")}, "x_scale:"),
        ({"x_scale": ((4, 2), "bfloat16")}, "x_scale:"),
        ({"weight_scale": ((6,), "float32")}, "weight_scale:"),
        ({"weight_scale": ((5, 3), "float32")}, "weight_scale:"),
        ({"weight_scale": ((4, 4), "float32")}, "weight_scale:"),
        ({"weight_scale": ((4, 3), "float16")}, "weight_scale:"),
        ({"out_dtype": "int8"}, "out_dtype:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    operands = [jnp.zeros(*values.pop(name)) for name in GOOD]
    with pytest.raises(ValueError, match=f"^{named} expected"):
        quantized_matmul(*operands, **values)


def test_sums_that_int32_does_not_hold_are_refused():
    k = LONGEST_BLOCK + 1
    shapes = [((1, k), "int8"), ((k, 1), "int8"), ((1, 1), "float32"), ((1, 1), "float32")]
    with pytest.raises(ValueError, match=r"^x_scale: expected"):
        jax.eval_shape(quantized_matmul, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def test_what_cannot_be_quantized_is_named():
    values = jnp.ones((4, 6))
    with pytest.raises(ValueError, match=r"^dtype: expected"):
        quantize(values, "int4", (1, None))
    with pytest.raises(ValueError, match=r"^values: expected"):
        quantize(values.astype(jnp.int32), "int8", (1, None))
    with pytest.raises(ValueError, match=r"^values: expected"):
        quantize(values[0], "int8", (1, None))
    for block in ((3, None), (1, 4), (0, None), (1, -1)):
        with pytest.raises(ValueError, match=r"^block: expected"):
            quantize(values, "int8", block)
    weight, scale = quantize(values, "int8", (None, 1))
    with pytest.raises(ValueError, match=r"^x: expected"):
        quantized_linear(jnp.ones((2, 4), jnp.int8), weight, scale)
    with pytest.raises(ValueError, match=r"^weight: expected"):
        quantized_linear(jnp.ones((2, 5)), weight, scale)
    with pytest.raises(ValueError, match=r"^weight_scale: expected"):
        quantized_linear(jnp.ones((2, 4)), weight, scale[0])


def test_no_rows_are_no_trouble():
    weight, scale = quantize(jnp.ones((64, 6)), "int8", (None, 1))
    assert quantized_linear(jnp.ones((0, 64)), weight, scale).shape == (0, 6)
