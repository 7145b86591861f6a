"""Layers against their textbook formulas in float64."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import CONTEXT

from aifx.nn import layers
from aifx.nn.rotary import Rotary
from aifx.parallel.context import ForwardContext
from jax_kernels._ops.rotary import rotary
from jax_kernels.tuning import relative_error


def test_gelus():
    x = np.linspace(-12, 12, 4001)
    erf = np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in x])
    tanh = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(layers.gelu(jnp.float32(x)), erf, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(layers.gelu_tanh(jnp.float32(x)), tanh, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_gradients(name):
    x = np.linspace(-12, 12, 4001)
    with jax.enable_x64(True):
        want = np.asarray(jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=name == "gelu_tanh")))(jnp.asarray(x)))
    got = jax.vmap(jax.grad(getattr(layers, name)))(jnp.float32(x))
    np.testing.assert_allclose(got, want, atol=4e-6)
    edges = jnp.array([-jnp.inf, -1e30, 1e30, jnp.nan], jnp.float32)
    out = getattr(layers, name)(edges)
    assert np.isnan(out[3])  # a diverged model must be seen
    np.testing.assert_allclose(out[1:3], [0.0, 1e30], rtol=1e-6)


def two_layers(params, x):
    """A product, a bias, and an output that is tied to the first matrix, as a decoder's is to its embedding."""
    hidden = layers.linear(x, params["weight"], params["bias"])
    return jnp.sum(layers.linear_at_least_float32(jnp.tanh(hidden), params["weight"].T) ** 2)


def operands_of_two_layers(dtype):
    rng = np.random.default_rng(0)
    shapes = {"weight": (48, 80), "bias": (80,), "x": (64, 48)}
    arrays = {name: jnp.asarray(rng.normal(size=shape) / 8, dtype) for name, shape in shapes.items()}
    return {name: arrays[name] for name in ("weight", "bias")}, arrays["x"]


def test_products_of_bfloat16_on_a_cpu_have_row_major_operands():
    """Its matrix units take no others: XLA widens what is transposed to float32 or multiplies it slowly."""
    text = jax.jit(jax.grad(two_layers, (0, 1))).lower(*operands_of_two_layers("bfloat16")).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert len(products) == 7  # two forward, four backward, and the gradient of the bias
    for line in products:
        assert "lhs_contracting_dims={1}, rhs_contracting_dims={0}" in line
        assert not re.search(r"\{0,1\}", line)
    reduced = [
        line for line in text.splitlines() if "reduce-window(" in line or re.search(r"bf16\[80\]\S* reduce", line)
    ]
    assert reduced == []


@pytest.mark.slow
def test_gradients_in_bfloat16_are_those_in_float32():
    params, x = operands_of_two_layers("bfloat16")
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
    got, want = jax.grad(two_layers, (0, 1))(params, x), jax.grad(two_layers, (0, 1))(*wide)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(a.astype(np.float32) - b) < 0.02 * np.linalg.norm(b)


def test_rotation_turns_pairs_and_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def turn(x, position):
        return rotary(x, *Rotary(8, 100.0).angles(jnp.array([[position]]), x.dtype))

    def score(at, other):
        turned = [turn(x, position) for x, position in ((q, at), (k, other))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(5, 3) == pytest.approx(score(105, 103), rel=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 4), rel=1e-2)
    x = np.asarray(turn(q, 3))[0, 0, 0]
    pairs = np.asarray(q)[0, 0, 0][:4] + 1j * np.asarray(q)[0, 0, 0][4:]
    want = pairs * np.exp(3j * 100.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(x, np.concatenate([want.real, want.imag]), atol=1e-5)


@pytest.mark.slow
def test_dropout_keeps_the_mean():
    x = jnp.ones((20, 1000))
    ctx = ForwardContext(CONTEXT.layout, training=True, key=jax.random.key(0), row_ids=jnp.arange(20))
    out = layers.dropout(x, 0.25, ctx)
    assert len({tuple(row.tolist()) for row in out}) == 20, "each row drops its own"
    np.testing.assert_array_equal(layers.dropout(x, 0.25, CONTEXT), x)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((out == 0).mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.slow
def test_dropout_draws_as_jax_does_and_a_part_of_a_row_as_the_whole_one():
    """So a device draws its own part alone. A row of the last shape has more elements than 32 bits count."""
    key, rows = jax.random.key(3), jnp.array([2, 7])
    ctx = ForwardContext(CONTEXT.layout, training=True, key=key, row_ids=rows)
    for shape in ((5,), (4, 6), (3, 5, 7)):
        keys = [jax.random.fold_in(jax.random.fold_in(key, 9), row) for row in rows]
        want = jnp.stack([jax.random.bernoulli(one, 0.7, shape) for one in keys])
        np.testing.assert_array_equal(layers.dropout(jnp.ones((2, *shape)), 0.3, ctx, 9) > 0, want)
    whole = layers.dropout(jnp.ones((2, 4, 6)), 0.3, ctx, 9)
    part = layers.dropout(jnp.ones((2, 2, 6)), 0.3, ctx, 9, jnp.array([3, 1]))
    np.testing.assert_array_equal(part, whole[:, jnp.array([3, 1])])
    number, width = np.uint64([70_000, 2**32 - 1]), 131_071
    high, low = (
        np.asarray(x).astype(np.uint64) for x in layers._counts(jnp.asarray(number, jnp.uint32)[:, None], width)
    )
    np.testing.assert_array_equal(
        (high << np.uint64(32)) + low, number[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_products_inside_a_shard_map(dtype):
    """Each device has its rows, and the map checks how values vary: it adds up gradients of what all devices have."""
    params, x = operands_of_two_layers(dtype)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    gradient = jax.grad(two_layers)
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
    for name, got in jax.jit(mapped)(params, x).items():
        assert relative_error(got, jax.jit(gradient)(params, x)[name]) < 1e-6
