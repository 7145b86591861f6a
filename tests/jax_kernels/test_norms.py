"""Each implementation of rms_norm and layer_norm, and its gradients, against the definition in float64 NumPy."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, TOLERANCE, jit, kernel_device, relative_error, running
from hypothesis import given
from hypothesis import strategies as st

from jax_kernels._ops.norms import LAYER_NORM, RMS_NORM, layer_norm, rms_norm
from jax_kernels._ops.norms.cases import SMALL_CASES, Case

KERNELS = ("pallas_triton", "pallas_tpu")
OPS = {"rms_norm": RMS_NORM, "layer_norm": LAYER_NORM}
SMALL_BLOCKS = {
    "pallas_triton": {
        "block_rows": 4,
        "num_warps": 1,
        "backward_block_rows": 2,
        "backward_num_warps": 1,
        "backward_programs": 3,
    },
    "pallas_tpu": {"block_rows": 16},
}
"""Block sizes of which small arrays, too, have several, and a program of the backward takes several turns."""

by_name = pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: f"{case.op}, {case.name}")


def arrays(case, dtype, seed=0):
    """x, scale, bias, residual and the gradients of both results; None for what the case does not have."""
    rng = np.random.default_rng(seed)
    x, residual, d_out, d_total = (jnp.asarray(rng.normal(size=(case.rows, case.embed)), dtype) for _ in range(4))
    scale, bias = (jnp.asarray(rng.normal(size=case.embed), case.param_dtype or dtype) for _ in range(2))
    residual, d_total = (residual, d_total) if case.residual else (None, None)
    return x, scale, bias if case.bias else None, residual, d_out, d_total


def by(case, implementation):
    def run(x, scale, bias, residual):
        options = {"residual": residual, "epsilon": case.epsilon, "implementation": implementation}
        result = rms_norm(x, scale, **options) if bias is None and case.op == "rms_norm" else None
        result = layer_norm(x, scale, bias, **options) if result is None else result
        return result if case.residual else (result, None)

    return run


def both_ways(run, x, scale, bias, residual, d_out, d_total):
    """Out and sum, and the gradients of x, scale, bias and residual, as far as there are such."""
    values, pull = jax.vjp(run, x, scale, bias, residual)
    return *values, *pull((d_out, d_total))


def results(run, *operands):
    return jit(partial(both_ways, run))(*operands)


def defined(case, x, scale, bias, residual, d_out, d_total):
    """The same as `both_ways`, of the sum as it was rounded."""

    def mean(rows):
        return rows.mean(axis=1, keepdims=True)

    total = x if residual is None else x + residual
    values, scale, d_out = (np.asarray(a, np.float64) for a in (total, scale, d_out))
    values = values - mean(values) if case.op == "layer_norm" else values
    deviation = np.sqrt(mean(values**2) + case.epsilon)
    normalized = values / deviation
    out = normalized * scale if bias is None else normalized * scale + np.asarray(bias, np.float64)
    d_normalized = d_out * scale
    d_x = (d_normalized - normalized * mean(d_normalized * normalized)) / deviation
    d_x = d_x - mean(d_x) if case.op == "layer_norm" else d_x
    d_scale, d_bias = (d_out * normalized).sum(axis=0), None if bias is None else d_out.sum(axis=0)
    if residual is None:
        return out, None, d_x, d_scale, d_bias, None
    d_x = d_x + np.asarray(d_total, np.float64)
    return out, total, d_x, d_scale, d_bias, d_x


def assert_right(case, got, operands, tolerance=TOLERANCE):
    x, scale, bias, residual, *_ = operands
    for a, b, like in zip(got, defined(case, *operands), (x, residual, x, scale, bias, residual), strict=True):
        assert (a is None) == (b is None) == (like is None)
        if a is not None:
            assert a.dtype == like.dtype
            assert relative_error(a, b) < tolerance[a.dtype.name]


# Each option. The others differ in blocks, which kernels alone have.
CORNERS = ("no residual", "odd sizes", "no bias")


@pytest.mark.parametrize(
    "case",
    [case if case.name in CORNERS else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=[f"{case.op}, {case.name}" for case in SMALL_CASES],
)
@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_values_and_gradients(implementation, case):
    with jax.enable_x64(True):
        operands = arrays(replace(case, param_dtype=None), "float64")
        assert_right(case, results(by(case, implementation), *operands), operands, {"float64": 1e-12})


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("case", [c for c in SMALL_CASES if "parameters" in c.name], ids=lambda c: f"{c.op}, {c.name}")
def test_precision(case, implementation, dtype):
    operands = arrays(case, dtype)
    assert_right(case, results(by(case, implementation), *operands), operands)


@pytest.mark.covering(1, "implementation")
@pytest.mark.filterwarnings("error:rms_norm", "error:layer_norm")
@by_name
@pytest.mark.parametrize("implementation", KERNELS)
def test_a_kernel(implementation, case):
    operands = arrays(case, "float32")
    with running(OPS[case.op], implementation, case.call("float32")):
        got = results(by(case, implementation), *operands)
    assert_right(case, got, operands)


def in_small_blocks(implementation, case, dtype):
    op, call, operands = OPS[case.op], case.call(dtype), arrays(case, dtype)
    with running(op, implementation, call):
        got = results(
            partial(op.implementations[implementation].run, call, tuple(SMALL_BLOCKS[implementation].items())),
            *operands,
        )
    assert_right(case, got, operands)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "embed", "dtype"),
    [
        ("rms_norm", 200, "float32"),
        ("layer_norm", 200, "float16"),
        ("layer_norm", 8200, "bfloat16"),  # wider than a GPU's registers hold
    ],
)
@pytest.mark.parametrize("implementation", KERNELS)
def test_many_blocks(implementation, op, embed, dtype):
    in_small_blocks(implementation, Case(op, "drawn", 18, embed, bias=op == "layer_norm"), dtype)


drawn = given(
    op=st.sampled_from([*OPS]),
    rows=st.integers(1, 70),
    embed=st.integers(4, 300),
    residual=st.booleans(),
    bias=st.booleans(),
    epsilon=st.sampled_from([1e-6, 1e-5, 0.3]),
    dtypes=st.tuples(st.sampled_from([*TOLERANCE]), st.none() | st.sampled_from([*TOLERANCE])),
)


@pytest.mark.slow
@examples(6)
@drawn
def test_any_call(op, rows, embed, residual, bias, epsilon, dtypes):
    dtype, param_dtype = dtypes
    case = Case(op, "drawn", rows, embed, residual, bias and op == "layer_norm", param_dtype, epsilon)
    operands = arrays(case, dtype)
    assert_right(case, results(by(case, "xla"), *operands), operands)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
@examples(2)
@drawn
def test_any_call_by_a_kernel(implementation, op, rows, embed, residual, bias, epsilon, dtypes):
    dtype, param_dtype = dtypes
    case = Case(op, "drawn", rows, embed, residual, bias and op == "layer_norm", param_dtype, epsilon)
    if (
        OPS[op].implementations[implementation].unsupported_reason(case.call(dtype), kernel_device(implementation))
        is None
    ):
        in_small_blocks(implementation, case, dtype)


@pytest.mark.covering(1)
@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_sum_is_rounded_before_it_is_normalized(implementation, dtype):
    x, scale, _, residual, *_ = arrays(Case("rms_norm", "drawn", 16, 64), dtype)
    norm = jax.jit(partial(rms_norm, implementation=implementation))
    out, total = norm(x, scale, residual=residual)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(out, norm(total, scale))


@pytest.mark.parametrize("implementation", ["xla", *KERNELS])
def test_a_mean_far_from_zero(implementation):
    """The difference of two large sums would lose all of such a variance."""
    case = Case("layer_norm", "far", 8, 256, residual=False)
    x, *rest = arrays(case, "float32")
    operands = (x + 4096.0, *rest)
    with running(LAYER_NORM, implementation, case.call("float32")):
        got = results(by(case, implementation), *operands)
    assert relative_error(got[0], defined(case, *operands)[0]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_rows_may_have_any_axes_before_them(norm):
    x, scale, _, residual, *_ = arrays(Case("rms_norm", "drawn", 24, 16), "float32")
    want = norm(x, scale, residual=residual)
    for leading in ((2, 3, 4), (24, 1)):
        got = norm(x.reshape(*leading, 16), scale, residual=residual.reshape(*leading, 16))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b.reshape(*leading, 16))
    np.testing.assert_allclose(norm(x[0], scale), norm(x[:1], scale)[0], rtol=1e-6)
    assert norm(x[:0], scale).shape == (0, 16)


@pytest.mark.parametrize("case", [c for c in SMALL_CASES if "odd" in c.name], ids=lambda c: c.op)
@pytest.mark.parametrize("implementation", ["xla", *KERNELS])
def test_only_what_was_normalized_is_kept(implementation, case):
    *operands, _, _ = arrays(case, "float32")
    with running(OPS[case.op], implementation, case.call("float32")):
        _, pull = jax.eval_shape(lambda *given: jax.vjp(by(case, implementation), *given), *operands)
    wide = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= case.rows * case.embed]
    assert len(wide) == 1


@pytest.mark.parametrize("case", [c for c in SMALL_CASES if "odd" in c.name], ids=lambda c: c.op)
@pytest.mark.parametrize("implementation", KERNELS)
def test_each_way_is_one_pass(implementation, case):
    """Two kernels, and nothing else that reads or writes an array of the size of x."""
    operands = arrays(case, "float32")
    with running(OPS[case.op], implementation, case.call("float32")):
        jaxpr = jax.make_jaxpr(partial(both_ways, by(case, implementation)))(*operands)
    passes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            inner = [value for value in equation.params.values() if hasattr(value, "eqns")]
            if equation.primitive.name != "pallas_call" and inner:
                for each in inner:
                    visit(each)
            elif any(v.aval.size >= case.rows * case.embed for v in (*equation.invars, *equation.outvars)):
                passes.append(equation.primitive.name)

    visit(jaxpr.jaxpr)
    assert [name for name in passes if name != "reshape"] == ["pallas_call"] * 2


GOOD = {
    "x": ((2, 4, 8), "float32"),
    "scale": ((8,), "float32"),
    "bias": ((8,), "float32"),
    "residual": ((2, 4, 8), "float32"),
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": ((), "float32")}, "x:"),
        ({"x": ((2, 4, 8), "int32")}, "x:"),
        ({"scale": ((7,), "float32")}, "scale:"),
        ({"scale": ((4, 8), "float32")}, "scale:"),
        ({"scale": ((8,), "int32")}, "scale:"),
        ({"bias": ((7,), "float32")}, "bias:"),
        ({"bias": ((8,), "bfloat16")}, "bias:"),
        ({"residual": ((2, 4, 7), "float32")}, "residual:"),
        ({"residual": ((8, 8), "float32")}, "residual:"),
        ({"residual": ((2, 4, 8), "bfloat16")}, "residual:"),
        ({"epsilon": -1e-6}, "epsilon:"),
        ({"epsilon": math.nan}, "epsilon:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    x, scale, bias, residual = (jnp.zeros(*values.pop(name)) for name in GOOD)
    with pytest.raises(ValueError, match=f"^{named} expected"):
        layer_norm(x, scale, bias, residual=residual, **values)
    if named != "bias:":
        with pytest.raises(ValueError, match=f"^{named} expected"):
            rms_norm(x, scale, residual=residual, **values)
