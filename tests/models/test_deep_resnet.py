"""ResNet-18, -34 and -50: their published sizes, gradients against finite differences, images of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from finite_differences import assert_gradients
from forward import outputs_of

from aifx.data.spec import DataSpec, Field
from aifx.models.resnet import PRESETS, ResnetSection
from aifx.models.resnet.deep import DeepResnet
from aifx.models.resnet.model import make
from aifx.specs import count_parameters, is_spec

PUBLISHED = {  # torchvision's models: parameters, and multiplications and additions for 224 x 224 pixels
    "resnet-18": (11_689_512, 1.81e9),
    "resnet-34": (21_797_672, 3.66e9),
    "resnet-50": (25_557_032, 4.09e9),
}


def network(image_shape=(9, 12, 1), num_outputs=5, **values):
    small = {"block": "basic", "channels": (4, 8), "blocks_per_stage": (1, 2), "norm_groups": 2}
    return DeepResnet(ResnetSection(**{**small, **values}), image_shape=image_shape, num_outputs=num_outputs)


def params_of(model, seed=0):
    """Far from the first values, of which the last norm of a block is zero."""
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        noise = rng.normal(scale=0.3, size=spec.shape)
        return jnp.asarray(noise + 1.0 if path[-1].key == "scale" else noise, spec.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.specs(), is_leaf=is_spec)


def images(model, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *model.image_shape), np.uint8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    data = DataSpec({"inputs": Field((224, 224, 3), "uint8")}, classes=tuple(map(str, range(1000))))
    model = make(ResnetSection(**PRESETS[name]), data)
    parameters, products = PUBLISHED[name]
    assert count_parameters(model.specs()) == parameters
    assert model.flops(2) / 12 == pytest.approx(products, rel=5e-3)


@pytest.mark.slow
def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        model = network((6, 7, 1), block="bottleneck", channels=(4, 6), blocks_per_stage=1)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params_of(model))
        pictures = jnp.asarray(images(model, 2))

        def loss(params):
            return -jnp.mean(jax.nn.log_softmax(outputs_of(model)(params, pictures))[:, 2])

        assert_gradients(loss, params, rtol=1e-4)


@pytest.mark.covering(1)
@pytest.mark.parametrize("size", [(1, 1), (2, 31), (33, 30)])
@pytest.mark.parametrize("stem", ["7x7", "3x3"])
def test_images_of_any_size(size, stem):
    model = network((*size, 3), stem=stem)
    outputs = jit(outputs_of(model))(params_of(model), images(model))
    assert outputs.shape == (3, 5)
    assert np.isfinite(outputs).all()


@pytest.mark.slow
def test_an_images_answer_does_not_depend_on_its_neighbours():
    model = network()
    params, pictures = params_of(model), images(model)
    together = jit(outputs_of(model))(params, pictures)
    np.testing.assert_allclose(together[1:2], jit(outputs_of(model))(params, pictures[1:2]), atol=1e-5)


def test_groups_of_channels_are_normalized_together():
    model = network(norm_groups=2)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 5, (2, 3, 4, 6)), jnp.float32)
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}
    groups = np.asarray(x, np.float64).reshape(2, 12, 2, 3)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)
    expected = expected.reshape(x.shape) * np.arange(1, 7) + np.arange(6)
    np.testing.assert_allclose(model.norm(params, x), expected, atol=1e-5)


def test_frozen_batch_norm_is_by_stored_statistics():
    model = network(norm="frozen_batch")
    x = jnp.asarray(np.random.default_rng(0).normal(3, 5, (2, 3, 4, 2)), jnp.float32)
    params = {"scale": [2.0, 3.0], "bias": [1.0, -1.0], "mean": [3.0, 2.0], "variance": [25.0, 4.0]}
    params = {name: jnp.asarray(values) for name, values in params.items()}
    expected = (np.asarray(x) - [3, 2]) / [5, 2] * [2, 3] + [1, -1]
    np.testing.assert_allclose(model.norm(params, x), expected, atol=1e-4)
    norm = model.specs()["stem"]["norm"]
    assert norm.keys() == params.keys()
    assert {spec.kind for spec in norm.values()} == {"buffer"}
    assert norm["variance"].is_exact


def test_the_stride_of_a_bottleneck_is_at_its_first_convolution_on_request():
    values = {"block": "bottleneck", "channels": (4, 8), "blocks_per_stage": 1}
    late, early = network(**values), network(bottleneck_stride="1x1", **values)
    strides = [[c.stride for c in tuple(model.blocks())[1].convolutions] for model in (late, early)]
    assert strides == [[1, 2, 1, 2], [2, 1, 1, 2]]
    assert early.flops(1) < late.flops(1)


@pytest.mark.slow
def test_a_network_starts_as_its_shortcuts():
    """The last norm of a block has a scale of zero, so one without a convolution in its shortcut changes nothing."""
    model = network((8, 8, 4), stem="3x3", channels=(4,), blocks_per_stage=(1,))
    (block,) = model.blocks()
    specs = model.specs()["stages"]["0"]["blocks"]["0"]
    params = jax.tree.map(lambda s: s.init(jax.random.key(0), s.shape, s.dtype), specs, is_leaf=is_spec)
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (2, 8, 8, 4)))
    np.testing.assert_array_equal(model.block(params, x, block), x)
