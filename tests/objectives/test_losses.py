"""Losses against NumPy in float64, at the edges too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.objectives.classification import cross_entropy


def reference(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    log_z = np.log(np.exp(wide - top).sum(-1)) + top[..., 0]
    return log_z - np.take_along_axis(wide, labels[..., None], -1)[..., 0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 3e4])
def test_cross_entropy_is_the_reference_at_any_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(3, 5, 17)) * scale).astype(np.float32)
    labels = rng.integers(0, 17, (3, 5)).astype(np.int32)
    got = np.asarray(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, reference(logits, labels), rtol=1e-5, atol=1e-5)
    assert (got >= 0).all()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = jnp.zeros((1, 50_000), jnp.bfloat16)
    loss = float(cross_entropy(logits, jnp.zeros(1, jnp.int32))[0])
    assert loss == pytest.approx(np.log(50_000), rel=1e-5)


def test_a_class_ruled_out_by_minus_infinity() -> None:
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    assert float(cross_entropy(logits, jnp.array([0]))[0]) == pytest.approx(np.log(2), rel=1e-6)
    assert float(cross_entropy(logits, jnp.array([1]))[0]) == np.inf


def test_gradient_is_softmax_less_one_hot() -> None:
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(4, 9)).astype(np.float32))
    labels = jnp.asarray(rng.integers(0, 9, 4).astype(np.int32))
    gradient = jax.grad(lambda x: cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - jax.nn.one_hot(labels, 9), atol=1e-6)


def test_smoothed_labels_are_spread_evenly_over_all_classes() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(7, 5)), rng.integers(0, 5, 7)
    expected = 0.8 * reference(logits, labels) + 0.2 * np.mean(
        [reference(logits, np.full(7, c)) for c in range(5)], axis=0
    )
    found = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
