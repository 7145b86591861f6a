"""Dropout in a decoder: in training alone, per layer, place and row, the same however layers and batches are cut."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from forward import CONTEXT, outputs_of

from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.nn import layers
from aifx.nn.attention import attention_with_dropout
from aifx.nn.stacking import stack_layers
from aifx.parallel.context import ForwardContext
from aifx.specs import init_params
from jax_kernels._ops.attention import attention

VOCAB, SEQ, ROWS = 31, 12, 4


def decoder(**values: Any) -> Decoder:
    section = DecoderSection(**{"num_layers": 3, "embed_dim": 16, "num_heads": 4, "dropout": 0.3, **values})
    return Decoder(section, vocab_size=VOCAB, seq_len=SEQ)


def drawn(seed: int = 0, rows: Any = range(ROWS)) -> ForwardContext:
    return ForwardContext(CONTEXT.layout, training=True, key=jax.random.key(seed), row_ids=jnp.array(rows))


@pytest.fixture(scope="module")
def params() -> Any:
    return jit(lambda: jax.tree.map(lambda x: 5 * x, init_params(decoder().specs(), jax.random.key(0))))()


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (ROWS, SEQ)), jnp.int32)


def outputs(model: Decoder, params: Any, ctx: ForwardContext, tokens: Any = TOKENS) -> Any:
    return jit(outputs_of(model, ctx))(params, tokens)


@pytest.mark.slow
def test_it_is_for_training_alone(params: Any) -> None:
    without = outputs(decoder(dropout=0.0), params, CONTEXT)
    np.testing.assert_array_equal(outputs(decoder(), params, CONTEXT), without)
    np.testing.assert_array_equal(outputs(decoder(dropout=0.0), params, drawn()), without)
    one, other = (outputs(decoder(), params, drawn(seed)) for seed in (0, 1))
    assert not np.allclose(one, without)
    assert not np.allclose(one, other)


@pytest.mark.slow
def test_what_a_row_drops_depends_on_its_number_in_the_global_batch_alone(params: Any) -> None:
    whole = outputs(decoder(), params, drawn())
    part = outputs(decoder(), params, drawn(rows=(2, 0)), TOKENS[jnp.array([2, 0])])
    np.testing.assert_allclose(part, whole[jnp.array([2, 0])], atol=1e-5)
    assert not np.allclose(outputs(decoder(), params, drawn(rows=(1, 0)), TOKENS[jnp.array([2, 0])]), part)


@pytest.mark.slow
def test_scanned_and_recomputed_layers_drop_the_same(params: Any) -> None:
    found = []
    for scan, remat in ((False, "none"), (False, "full"), (True, "dots")):
        model = decoder(scan_layers=scan, remat=remat)

        def loss(params: Any, model: Decoder = model) -> Any:
            return jnp.mean(jax.nn.log_softmax(outputs_of(model, drawn())(params, TOKENS))[..., 3] ** 2)

        value, gradient = jit(jax.value_and_grad(loss))(stack_layers(params) if scan else params)
        found.append((float(value), np.asarray(gradient["embedding"]["token"])))
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-5)
        np.testing.assert_allclose(gradient, found[0][1], atol=1e-4 * np.abs(found[0][1]).max())


@pytest.mark.slow
def test_each_place_draws_its_own(monkeypatch: pytest.MonkeyPatch, params: Any) -> None:
    """The embedding, then of each layer the weights of attention, its output and the MLP's."""
    seen: list[tuple[bytes, tuple[int, ...]]] = []

    def dropout(x: Any, rate: float, ctx: ForwardContext, place: int = 0, number: Any = None) -> Any:
        key = jax.random.fold_in(ctx.key, place)
        seen.append((np.asarray(jax.random.key_data(key)).tobytes(), x.shape))
        return x

    monkeypatch.setattr(layers, "dropout", dropout)
    outputs_of(decoder(), drawn())(params, TOKENS)
    flat, scores = (ROWS, SEQ, 16), (ROWS, 4, SEQ, SEQ)
    assert [shape for _, shape in seen] == [flat, *3 * [scores, flat, flat]]
    assert len({key for key, _ in seen}) == len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_its_attention_is_the_kernels_when_nothing_is_dropped(num_kv_heads: int) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, SEQ, heads, 8)), jnp.float32) for heads in (4, num_kv_heads, num_kv_heads)
    )
    segment_ids = jnp.asarray([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3], jnp.int32)
    for ids in (None, segment_ids):
        plain = attention_with_dropout(q, k, v, 0.0, drawn(), 0, ids)
        want = attention(q, k, v, causal=True, segment_ids=ids)
        np.testing.assert_allclose(plain, want, atol=2e-6)
    dropped = attention_with_dropout(q, k, v, 0.5, drawn(rows=(0, 1)), 0)
    # The first token attends to itself alone: a head's one weight is doubled or dropped.
    first, values = np.asarray(dropped[:, 0]), np.repeat(np.asarray(v[:, 0]), 4 // num_kv_heads, axis=1)
    kept = [np.allclose(a, 2 * b) for a, b in zip(first.reshape(8, 8), values.reshape(8, 8), strict=True)]
    np.testing.assert_array_equal(first.reshape(8, 8)[~np.array(kept)], 0.0)
    assert 0 < sum(kept) < 8
