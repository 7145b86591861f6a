"""Quantized matrices in a model: which arrays they replace, and how little the model changes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import outputs_of

from aifx.config.sections import LoraSection, Quantization
from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.nn import initializers, layers
from aifx.nn.adapters import merged_matrix, quantize_array
from aifx.nn.quantized import (
    Int8Table,
    QuantizedMatrix,
    as_dense,
    concat_outputs,
    quantize_matrices,
    two_term_product,
)
from aifx.specs import ArraySpec, init_params, is_spec
from jax_kernels.implementations import current_device

INPUTS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 16)), jnp.int32)


@functools.cache
def decoder(scan: bool) -> tuple[Decoder, Any, np.ndarray]:
    """A model, its params and the scores of INPUTS."""
    section = DecoderSection(num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, scan_layers=scan)
    model = Decoder(section, vocab_size=50, seq_len=16)
    specs = model.specs()
    first = jax.jit(lambda: init_params(specs, jax.random.key(0)))()
    params = jax.tree.map(lambda spec, x: 4 * x if spec.decay else x, specs, first, is_leaf=is_spec)
    return model, params, np.asarray(jax.jit(outputs_of(model))(params, INPUTS))


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
# Rounding a normal number whose block's largest is 3 deviations leaves 0.7 % of it in int8 and 2.5 % in fp8 (3 bits);
# both operands of 8 products in a row add up to 4 times as much, and half as much again is left for luck.
@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.04), ("float8_e4m3fn", 0.15)])
def test_a_quantized_decoder_is_nearly_the_same(scan: bool, quantization: Quantization, tolerance: float) -> None:
    model, params, want = decoder(scan)
    specs = model.specs()
    quantized = quantize_matrices(params, specs, quantization)

    def is_matrix(node: object) -> bool:
        return isinstance(node, QuantizedMatrix | Int8Table)

    leaves = jax.tree.leaves(quantized, is_leaf=is_matrix)
    for spec, before, after in zip(
        jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(params), leaves, strict=True
    ):
        is_replaced = spec.matrix is not None or (quantization == "int8" and spec.product is not None)
        assert is_matrix(after) == is_replaced
        if is_replaced:
            assert after.values.dtype == quantization
            assert after.values.size == before.size
        else:
            np.testing.assert_array_equal(after, before)
    got = np.asarray(jax.jit(outputs_of(model))(quantized, INPUTS))
    assert 0 < np.linalg.norm(got - want) < tolerance * np.linalg.norm(want)


def test_nothing_is_quantized_unless_asked() -> None:
    params = {"up": jnp.ones((2, 2))}
    assert quantize_matrices(params, {}, "none") is params


@pytest.mark.slow
def test_two_terms_leave_the_error_of_the_weights() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 96)) * np.exp(3 * rng.normal(size=(3, 1)))
    weight = rng.normal(size=(40, 96))
    scale = np.abs(weight).max(axis=1) / 127
    table = Int8Table(jnp.asarray(np.round(weight / scale[:, None]), jnp.int8), jnp.asarray(scale, jnp.float32))
    stored = np.asarray(as_dense(table, jnp.float32), np.float64)
    want = x @ stored.T
    got = jax.jit(two_term_product)(jnp.asarray(x, jnp.float32), *table)
    # A half step of the low term, 127 * 254 of which are the largest number of a row.
    bound = np.abs(x).max(axis=1, keepdims=True) / (2 * 127 * 254) * np.abs(stored).sum(axis=1)
    assert (np.abs(got - want) <= 1.01 * bound).all()
    gradient = jax.grad(lambda x: layers.linear(x, table).sum())(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(gradient, np.broadcast_to(stored.sum(axis=0), x.shape), rtol=1e-4, atol=1e-4)
    zeros = two_term_product(jnp.zeros((1, 96)), *table)
    assert (zeros == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_product_with_a_table_is_that_of_its_matrix(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """Two 8-bit terms of the activations on a CPU, all of them elsewhere; the gradient is exact on both."""
    keys = jax.random.split(jax.random.key(1), 3)
    x, d_out = jax.random.normal(keys[0], (32, 96)), jax.random.normal(keys[1], (32, 48))
    spec = ArraySpec((4, 24, 6, 8), (None,) * 4, initializers.zeros, matrix=((0, 1), (2, 3)))
    stored = quantize_array(jax.random.normal(keys[2], spec.shape), spec)
    matrix = merged_matrix(stored, spec, LoraSection()).reshape(96, 48)
    table = layers.as_matrix(Int8Table(stored["int8"], stored["int8_scale"]), 96)
    device = replace(current_device(), platform=platform)
    monkeypatch.setattr(layers, "current_device", lambda: device)
    product, pull = jax.vjp(lambda x: layers.linear(x, table), x)
    difference = np.linalg.norm(product - x @ matrix) / np.linalg.norm(product)
    assert (1e-6 < difference < 1e-4) if platform == "cpu" else difference < 1e-6
    np.testing.assert_allclose(pull(d_out)[0], d_out @ matrix.T, atol=1e-3)


@pytest.mark.slow
def test_matrices_side_by_side() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    plain = [jax.random.normal(key, (8, n)) for key, n in zip(keys, (3, 5), strict=True)]
    tables = [Int8Table((10 * x.T).astype(jnp.int8), jnp.full(x.shape[1], 0.1)) for x in plain]
    joint = concat_outputs(*tables)
    assert isinstance(joint, Int8Table)
    np.testing.assert_array_equal(
        as_dense(joint, jnp.float32), jnp.concatenate([as_dense(t, jnp.float32) for t in tables])
    )
    np.testing.assert_array_equal(as_dense(concat_outputs(*plain), jnp.float32), jnp.concatenate(plain, axis=1))
