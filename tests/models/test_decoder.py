"""The decoder: its logits against NumPy, its gradients against finite differences, its properties."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from finite_differences import assert_gradients
from forward import CONTEXT, outputs_of
from numpy_decoder import forward

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.models.decoder import decoding
from aifx.models.decoder.model import Decoder, make
from aifx.models.decoder.section import DecoderSection
from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.specs import init_params, is_spec

VOCAB, SEQ = 37, 24
FAMILIES = {
    "gpt2": {"norm": "layer_norm", "positions": "learned", "activation": "gelu_tanh", "bias": True},
    "llama": {"num_kv_heads": 2, "tie_embeddings": False, "rope_theta": 500.0, "mlp_dim": 40},
    "erf gelu, wide heads": {"activation": "gelu", "head_dim": 12, "norm": "layer_norm"},
    "gated with biases": {"bias": True, "num_kv_heads": 1},
    "normed queries and keys": {"qk_norm": True, "num_kv_heads": 2},
    "norms after": {"norm_placement": "after", "qk_norm": True, "qk_norm_over": "heads", "num_kv_heads": 2},
    "norms before and after": {
        "norm_placement": "both",
        "norm_offset": True,
        "embedding_scale": True,
        "activation": "geglu_tanh",
        "attention_scale": 0.3,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "windows": (6,),
        "rope_window_theta": 50.0,
        "qk_norm": True,
        "head_dim": 6,
    },
    "windows": {
        "windows": (5,),
        "head_dim": 8,
        "rope_fraction": 0.5,
        "attention_bias": "qkv",
        "rope_theta": 100.0,
        "rope_scaling": "llama3",
        "rope_factor": 8.0,
        "rope_original_len": 16,
    },
}
DIFFERING = {
    "windows": (3, 0),
    "rope_layers": (True, False),
    "attention_bias": "all",
    "rope_scaling": "yarn",
    "rope_factor": 4.0,
    "rope_original_len": 64,
    "head_dim": 8,
}
"""Layers that are not alike, which cannot be scanned."""


def decoder(**values):
    section = DecoderSection(**{"num_layers": 2, "embed_dim": 16, "num_heads": 4, **values})
    return Decoder(section, vocab_size=VOCAB, seq_len=SEQ)


def params_of(model, seed=0):
    """Far from the small first values, so that every nonlinearity bends and every bias counts."""
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        noise = rng.normal(scale=0.4, size=spec.shape)
        return jnp.asarray(noise + 1.0 if path[-1].key == "scale" else noise, spec.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.specs(), is_leaf=is_spec)


def tokens(seed=0, batch=2, seq=SEQ):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, seq)), jnp.int32)


def scores(model, params, hidden):
    """The head's outputs for `[..., embed]`."""
    return model.head(params, CONTEXT)(hidden.reshape(-1, hidden.shape[-1])).reshape(*hidden.shape[:-1], -1)


def prefill(model, params, inputs, lengths, empty):
    """The head's input for the prompts, which begin the rows of `inputs`, and a cache that holds them."""
    hidden, cached = model.extend(params, inputs, empty, CONTEXT)
    return hidden, {**cached, "lengths": lengths}


@cache
def paged(family, scan):
    """A model over pages that are shorter than its rows, and its programs: they serve prompts of any length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "PAGE_SIZE", 8)
        model = decoder(**FAMILIES[family], scan_layers=scan)
        params, rows = params_of(model), jnp.zeros(2, jnp.int32)
        empty = jit(lambda: init_params(model.cache_specs(2, SEQ), jax.random.key(0)))()
        whole, read, decode = (
            jit(f).lower(*a).compile()
            for f, a in (
                (outputs_of(model), (params, tokens())),
                (partial(prefill, model), (params, tokens(), rows, empty)),
                (partial(model.decode, ctx=CONTEXT), (params, rows, empty)),
            )
        )
    return model, params, empty, whole, read, decode


# Each part of a block is in one of these; the logits of whole architectures are those of transformers: tests/hub.
QUICK = ("gpt2", "gated with biases", "norms before and after")


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_logits_are_numpys(family):
    model = decoder(**FAMILIES[family])
    params, inputs = params_of(model), tokens()
    want = forward(model.section, params, inputs)
    got = jit(outputs_of(model))(params, inputs)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_layers_that_differ_are_numpys_and_decode_as_they_read(scaling):
    model = decoder(**{**DIFFERING, "rope_scaling": scaling})
    params, inputs = params_of(model), tokens()
    want = forward(model.section, params, inputs)
    close = partial(np.testing.assert_allclose, atol=2e-5 * np.abs(want).max())
    close(jit(outputs_of(model))(params, inputs), want)
    empty = init_params(model.cache_specs(2, SEQ), jax.random.key(0))
    hidden, cache = jit(partial(prefill, model))(params, inputs, jnp.array([4, 20]), empty)
    step = jit(partial(model.decode, ctx=CONTEXT))
    for _ in range(3):
        held = np.asarray(cache["lengths"])
        hidden, cache = step(params, inputs[np.arange(2), held], cache)
        close(scores(model, params, hidden), want[np.arange(2), held])
    plain = decoder(**{**DIFFERING, "windows": ()})
    assert plain.flops(1) > model.flops(1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_are_numpys_and_separate_ones(family):
    model = decoder(**FAMILIES[family])
    params = params_of(model)
    lengths = (9, 10, 5)
    documents = [tokens(i, 1, n) for i, n in enumerate(lengths)]
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    segment_ids = np.repeat([1, 2, 3], lengths)[None].astype(np.int32)
    inputs = np.concatenate(documents, axis=1)
    got = jit(outputs_of(model))(params, inputs, segment_ids=segment_ids, positions=positions)
    alone = np.concatenate([jit(outputs_of(model))(params, d) for d in documents], axis=1)
    want = forward(model.section, params, inputs, positions, segment_ids)
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=2e-5 * scale)
    np.testing.assert_allclose(got, alone, atol=2e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_gradients_are_finite_differences(family, scan):
    with jax.enable_x64(True):
        model = decoder(**FAMILIES[family], scan_layers=scan)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params_of(model))
        inputs = tokens(seq=8)

        def loss(params):
            return -jnp.mean(jax.nn.log_softmax(outputs_of(model)(params, inputs))[..., 3])

        assert_gradients(loss, params)


@pytest.mark.parametrize(
    "family", [name if name in ("gpt2", "windows") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_token_changes_nothing_before_itself(family):
    model = decoder(**FAMILIES[family])
    params, inputs = params_of(model), tokens()
    changed = np.array(inputs)
    changed[:, 11] = (changed[:, 11] + 1) % VOCAB
    forward_pass = jit(outputs_of(model))
    before, after = (forward_pass(params, x) for x in (inputs, jnp.asarray(changed)))
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert not np.allclose(before[:, 11:], after[:, 11:])


@pytest.mark.covering(1, "scan")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("prompts", [(1, 1), (10, 17), (SEQ - 1, 3)], ids=str)
def test_cached_decoding_is_the_full_forward(family, scan, prompts):
    """Rows of lengths of their own, over pages that are shorter than they are."""
    model, params, empty, whole, read, decode = paged(family, scan)
    inputs = tokens()
    want = whole(params, inputs)
    close = partial(np.testing.assert_allclose, atol=2e-5 * np.abs(want).max())
    lengths = jnp.asarray(prompts, jnp.int32)
    hidden, cache = read(params, inputs, lengths, empty)
    close(scores(model, params, hidden), want)  # a causal mask: what fills up a row comes after its prompt
    for _ in range(SEQ - max(prompts)):
        held = np.asarray(cache["lengths"])
        hidden, cache = decode(params, inputs[np.arange(2), held], cache)
        close(scores(model, params, hidden), want[np.arange(2), held])
    np.testing.assert_array_equal(cache["lengths"], np.asarray(prompts) + SEQ - max(prompts))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_scanned_and_recomputed_layers_are_the_same_model(family):
    inputs = tokens()
    losses, gradients = [], []
    specs = decoder(**FAMILIES[family], num_layers=3).specs()
    first = jit(lambda: init_params(specs, jax.random.key(0)))()
    for scan in (False, True):
        for remat in ("none", "dots", "full"):
            model = decoder(**FAMILIES[family], num_layers=3, scan_layers=scan, remat=remat)
            params = stack_layers(first) if scan else first

            def loss(params, model=model):
                return -jnp.mean(jax.nn.log_softmax(outputs_of(model)(params, inputs))[..., 3])

            value, gradient = jit(jax.value_and_grad(loss))(params)
            losses.append(float(value))
            gradients.append(unstack_layers(gradient))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    for other in gradients[1:]:
        assert jax.tree.structure(other) == jax.tree.structure(gradients[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other, gradients[0])


def test_computes_in_the_dtype_of_its_params():
    model = decoder(**FAMILIES["llama"])
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(model))
    hidden = jax.eval_shape(lambda params, x: model.hidden(params, {"inputs": x}, CONTEXT), params, tokens())
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(outputs_of(model), params, tokens()).dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_narrow_params_do_not_round_the_logits(family):
    model = decoder(**FAMILIES[family])
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(model))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    hidden = jax.random.normal(jax.random.key(2), (2, SEQ, 16), jnp.bfloat16)
    np.testing.assert_allclose(
        scores(model, params, hidden), scores(model, wide, hidden.astype(jnp.float32)), rtol=1e-5, atol=1e-5
    )

    def loss(params, hidden):
        return jnp.mean(jax.nn.log_softmax(scores(model, params, hidden))[..., 3])

    gradients = jit(jax.grad(loss, (0, 1)))
    narrow_gradients, wide_gradients = gradients(params, hidden), gradients(wide, hidden.astype(jnp.float32))
    for got, want in zip(jax.tree.leaves(narrow_gradients), jax.tree.leaves(wide_gradients), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02 * float(jnp.abs(want).max()))


def test_every_array_says_how_it_trains():
    """Matrices are what Muon turns; they and the embeddings decay; each matrix covers all of its dimensions."""
    for family in FAMILIES.values():
        flat = jax.tree_util.tree_leaves_with_path(decoder(**family).specs(), is_leaf=lambda s: hasattr(s, "axes"))
        for path, spec in flat:
            name = jax.tree_util.keystr(path)
            vector = "norm" in name or "bias" in name
            table = "embedding" in name or name == "['output']"
            assert spec.decay != vector, name
            assert (spec.matrix is None) == (vector or table), name
            if spec.matrix is not None:
                assert sorted(spec.matrix[0] + spec.matrix[1]) == list(range(len(spec.shape))), name


@pytest.mark.representative("values of a new model")
def test_first_values_are_gpt2s():
    model = decoder(**{**FAMILIES["gpt2"], "embed_dim": 128, "num_layers": 8})
    layer = jit(lambda: init_params(model.specs(), jax.random.key(0))["layers"]["3"])()
    assert float(layer["mlp"]["up"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(layer["mlp"]["down"].std()) == pytest.approx(0.02 / 4, rel=0.02)
    assert float(layer["attention"]["output"].std()) == pytest.approx(0.02 / 4, rel=0.03)


def test_misuse_is_named():
    model = decoder(**FAMILIES["gpt2"])
    params = params_of(model)
    with pytest.raises(ValueError, match="inputs"):
        outputs_of(model)(params, tokens(seq=SEQ + 1))


@pytest.mark.parametrize(
    ("field", "found"),
    [(Field((8, 8, 1), "uint8"), "uint8 [8, 8, 1]"), (Field((4,), "float32"), "float32 [4]"), (None, "no such field")],
)
def test_data_without_tokens_is_refused(field, found):
    data = DataSpec({} if field is None else {"inputs": field}, vocab_size=9)
    with pytest.raises(ConfigError, match=re.escape(found)):
        make(DecoderSection(), data)
