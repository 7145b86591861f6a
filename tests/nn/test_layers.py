"""Layers against their textbook formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.nn import layers
from jax_kernels.rotary import rotary


def test_gelus():
    x = np.linspace(-12, 12, 4001)
    erf = np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in x])
    tanh = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(layers.gelu(jnp.float32(x)), erf, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(layers.gelu_tanh(jnp.float32(x)), tanh, rtol=2e-6, atol=2e-6)


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


def test_rotation_turns_pairs_and_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def turn(x, position):
        return rotary(x, *layers.rotary_angles(jnp.array([[position]]), 8, 100.0, x.dtype))

    def score(at, other):
        turned = [turn(x, position) for x, position in ((q, at), (k, other))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(5, 3) == pytest.approx(score(105, 103), rel=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 4), rel=1e-2)
    x = np.asarray(turn(q, 3))[0, 0, 0]
    pairs = np.asarray(q)[0, 0, 0][:4] + 1j * np.asarray(q)[0, 0, 0][4:]
    want = pairs * np.exp(3j * 100.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(x, np.concatenate([want.real, want.imag]), atol=1e-5)


def test_dropout_keeps_the_mean():
    x = jnp.ones(20_000)
    out = layers.dropout(x, 0.25, jax.random.key(0))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((out == 0).mean()) == pytest.approx(0.25, abs=0.02)
