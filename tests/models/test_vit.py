"""Vision transformers: logits against NumPy, published sizes, gradients, dropout, images that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from forward import CONTEXT, outputs_of
from scipy.special import erf, softmax

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.models.vit import PRESETS, VitSection
from aifx.models.vit.model import Vit, make
from aifx.nn.stacking import stack_layers
from aifx.parallel.context import ForwardContext
from aifx.specs import count_parameters, is_spec

PUBLISHED = {  # timm's models for 224 x 224 pixels
    "vit-s-16": 22_050_664,
    "vit-s-32": 22_878_952,
    "vit-b-16": 86_567_656,
    "vit-b-32": 88_224_232,
}


def transformer(image_shape=(8, 12, 3), **values):
    small = {"patch_size": 4, "num_layers": 2, "embed_dim": 16, "num_heads": 4, "mlp_dim": 24}
    return Vit(VitSection(**{**small, **values}), image_shape=image_shape, num_outputs=5)


def params_of(model, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        noise = rng.normal(scale=0.4, size=spec.shape)
        return jnp.asarray(noise + 1.0 if path[-1].key == "scale" else noise, spec.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.specs(), is_leaf=is_spec)


def images(model, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *model.image_shape), np.uint8)


def forward(section, params, pictures):
    """The logits `[images, outputs]` in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(own, x):
        spread = np.sqrt(x.var(-1, keepdims=True) + section.norm_epsilon)
        return (x - x.mean(-1, keepdims=True)) / spread * own["scale"] + own["bias"]

    x = pictures.astype(np.float64)
    x = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)
    size, table = section.patch_size, params["embedding"]
    corners = [(r, c) for r in range(0, x.shape[1], size) for c in range(0, x.shape[2], size)]
    patches = np.stack([x[:, r : r + size, c : c + size].reshape(len(x), -1) for r, c in corners], axis=1)
    patches = patches @ table["patch"] + table["patch_bias"]
    x = np.concatenate([np.tile(table["class"], (len(x), 1, 1)), patches], axis=1) + table["position"]
    for i in range(section.num_layers):
        layer = params["layers"][str(i)]
        own, y = layer["attention"], norm(layer["attention_norm"], x)
        q, k, v = (np.einsum("ntd,dhk->nhtk", y, own[n]) + own[f"{n}_bias"][:, None] for n in ("query", "key", "value"))
        weights = softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), axis=-1)
        x = x + np.einsum("nhtk,hkd->ntd", weights @ v, own["output"]) + own["output_bias"]
        own, y = layer["mlp"], norm(layer["mlp_norm"], x)
        y = y @ own["up"] + own["up_bias"]
        x = x + (y * (1 + erf(y / np.sqrt(2))) / 2) @ own["down"] + own["down_bias"]
    return norm(params["final_norm"], x[:, 0]) @ params["output"]["weight"] + params["output"]["bias"]


def test_logits_are_numpys():
    model = transformer()
    params, pictures = params_of(model), images(model)
    got = jit(outputs_of(model))(params, pictures)
    np.testing.assert_allclose(got, forward(model.section, params, pictures), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    data = DataSpec({"inputs": Field((224, 224, 3), "uint8")}, classes=tuple(map(str, range(1000))))
    model = make(VitSection(**PRESETS[name]), data)
    assert count_parameters(model.specs()) == PUBLISHED[name]
    if name == "vit-b-16":
        assert model.flops(2) / 12 == pytest.approx(17.56e9, rel=2e-3)  # torchvision's, multiplications and additions


@pytest.mark.slow
def test_scanned_and_recomputed_layers_are_the_unrolled_ones():
    model, other = transformer(dropout=0.3), transformer(dropout=0.3, scan_layers=True, remat="full")
    params, pictures = params_of(model), images(model)
    ctx = ForwardContext(CONTEXT.layout, True, jax.random.key(1), jnp.arange(3))
    expected = jit(outputs_of(model, ctx))(params, pictures)
    np.testing.assert_allclose(jit(outputs_of(other, ctx))(stack_layers(params), pictures), expected, rtol=1e-4)
    plain = jit(outputs_of(model))(params, pictures)
    assert not np.allclose(plain, expected, atol=0.1)
    rows = jnp.array([2, 0])  # what a row drops depends on its number alone
    part = jit(outputs_of(model, ForwardContext(CONTEXT.layout, True, jax.random.key(1), rows)))(params, pictures[rows])
    np.testing.assert_allclose(part, expected[rows], rtol=1e-4, atol=1e-4)


def test_patches_fill_the_image():
    with pytest.raises(ConfigError, match=r"8 x 13.*model\.patch_size = 4"):
        transformer((8, 13, 3))
