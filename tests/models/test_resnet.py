"""The vision network: gradients against finite differences, and what its answer depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from finite_differences import assert_gradients
from forward import CONTEXT, outputs_of

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.models.resnet.features import normalized, pooled
from aifx.models.resnet.model import Resnet, make
from aifx.models.resnet.section import ResnetSection
from aifx.parallel.context import ForwardContext
from aifx.specs import count_parameters, init_params


def network(image_shape=(12, 13, 1), **values):
    section = ResnetSection(**{"channels": (4, 6), "dropout": 0.3, **values})
    return Resnet(section, image_shape=image_shape, num_outputs=5)


def params_of(model):
    rng = np.random.default_rng(1)
    params = jit(lambda: init_params(model.specs(), jax.random.key(0)))()
    return jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype), params)


def images(model, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *model.image_shape), np.uint8)


@pytest.mark.slow
def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        model = network()
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params_of(model))
        pictures = jnp.asarray(images(model))

        def loss(params):
            return -jnp.mean(jax.nn.log_softmax(outputs_of(model)(params, pictures))[:, 2])

        assert_gradients(loss, params, rtol=1e-5)


@pytest.mark.slow
def test_a_pictures_answer_does_not_depend_on_its_neighbours():
    model = network()
    params, pictures = params_of(model), images(model)
    together = jit(outputs_of(model))(params, pictures)
    assert together.shape == (3, 5)
    np.testing.assert_allclose(together[1:2], jit(outputs_of(model))(params, pictures[1:2]), atol=1e-5)


@pytest.mark.slow
def test_scale_of_the_pixels_does_not_matter():
    model = network()
    params, pictures = params_of(model), images(model)
    np.testing.assert_allclose(
        jit(outputs_of(model))(params, pictures),
        jit(outputs_of(model))(params, pictures.astype(np.float32) / 255),
        rtol=1e-3,
        atol=1e-3,
    )


def classify(model, training=False, seed=0, rows=(0, 1, 2)):
    def outputs(params, pictures):
        key = jax.random.key(seed) if training else None
        return outputs_of(model, ForwardContext(CONTEXT.layout, training, key, jnp.array(rows)))(params, pictures)

    return jit(outputs)


@pytest.mark.slow
def test_dropout_is_for_training_alone():
    model = network()
    params, pictures = params_of(model), images(model)
    np.testing.assert_array_equal(classify(model)(params, pictures), classify(model)(params, pictures))
    one, other = (classify(model, True, seed)(params, pictures) for seed in (0, 1))
    assert not np.allclose(one, other)


@pytest.mark.slow
def test_dropout_of_a_row_depends_on_its_place_in_the_global_batch_alone():
    """So micro-batches and devices drop what one device would drop."""
    model = network()
    params, pictures = params_of(model), images(model)
    whole = classify(model, True)(params, pictures)
    part = classify(model, True, rows=(2, 0))(params, pictures[[2, 0]])
    np.testing.assert_allclose(part, whole[jnp.array([2, 0])], atol=1e-5)
    assert not np.allclose(classify(model, True, rows=(1, 0))(params, pictures[[2, 0]]), part)


def test_flops_count_each_weight_where_it_is_applied():
    model = network((8, 8, 1), channels=(2,), blocks_per_stage=1)
    assert model.flops(3) == 6 * 3 * (64 * 9 * 2 + 2 * 16 * 9 * 4 + 2 * 5)


def test_blocks_and_stages_count():
    one, two = (count_parameters(network(blocks_per_stage=n).specs()) for n in (1, 2))
    assert two - one == sum(2 * 9 * c * c + 4 * c for c in (4, 6))


def test_pictures_too_small_for_the_stages_are_refused():
    with pytest.raises(ConfigError, match=r"model\.channels"):
        network((7, 28, 1), channels=(4, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("block", ["small", "basic"])
def test_the_maximum_is_read_in_place_of_the_mean(block):
    """A feature of one pixel fades in the mean over the image, and not in the maximum."""
    section = ResnetSection(channels=(4, 6), block=block, stem="3x3", norm_groups=2, pooling="max")
    x = np.zeros((2, 8, 8, 6), np.float32)
    x[1, 3, 5, 2] = 1.0
    assert pooled(x, section).tolist() == [[0] * 6, [0, 0, 1, 0, 0, 0]]
    assert pooled(x, section.model_copy(update={"pooling": "mean"}))[1, 2] == 1 / 64
    data = DataSpec({"inputs": Field((12, 13, 1), "uint8")}, classes=tuple("abcde"))
    model = make(section, data)
    mean = make(section.model_copy(update={"pooling": "mean"}), data)
    params, pictures = params_of(model), images(model)
    assert not np.allclose(classify(model)(params, pictures), classify(mean)(params, pictures))


@pytest.mark.slow
def test_gradients_of_the_maximum_are_finite_differences():
    with jax.enable_x64(True):
        model = network(pooling="max")
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params_of(model))
        pictures = jnp.asarray(images(model))
        assert_gradients(
            lambda p: jnp.mean(jax.nn.log_softmax(outputs_of(model)(p, pictures))[:, 2]), params, rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("block", ["small", "basic"])
def test_local_contrast_takes_light_out_and_keeps_detail(block):
    section = ResnetSection(channels=(4, 6), block=block, stem="3x3", norm_groups=2, local_contrast=2)
    rng = np.random.default_rng(3)
    detail = rng.normal(size=(1, 40, 50, 1))
    light = np.linspace(50, 150, 50)[:, None]
    found = np.asarray(normalized(jnp.asarray(100 + 5 * detail), section, jnp.float32))
    lit = np.asarray(normalized(jnp.asarray(light * (1 + 0.05 * detail)), section, jnp.float32))
    assert np.corrcoef(found.ravel(), lit.ravel())[0, 1] > 0.95
    around = np.pad(100 + 5 * detail[0, :, :, 0], 2, mode="symmetric")  # the mean around each pixel, by its definition
    means = np.lib.stride_tricks.sliding_window_view(around, (5, 5)).mean((2, 3))
    differences = np.pad((100 + 5 * detail[0, :, :, 0] - means) ** 2, 2, mode="symmetric")
    deviation = np.sqrt(np.lib.stride_tricks.sliding_window_view(differences, (5, 5)).mean((2, 3)))
    expected = (100 + 5 * detail[0, :, :, 0] - means) / deviation
    np.testing.assert_allclose(found[0, :, :, 0], expected, atol=0.02)
    model = make(section, DataSpec({"inputs": Field((12, 13, 1), "uint8")}, classes=tuple("abcde")))
    params, pictures = params_of(model), images(model)
    gradient = np.linspace(0, 20, 13)[:, None]
    plain = classify(model)(params, pictures)
    assert np.abs(classify(model)(params, pictures + gradient) - plain).max() < 0.2 * np.abs(plain).max()


@pytest.mark.slow
@pytest.mark.parametrize("block", ["small", "basic"])
def test_with_pixel_mean_local_contrast_keeps_brightness(block):
    """The network reads pixels by the given mean, followed by the local contrast, which is the same without it."""
    section = ResnetSection(channels=(4,), block=block, stem="3x3", norm_groups=2, local_contrast=2)
    both = section.model_copy(update={"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.2, 0.2)})
    pictures = jnp.asarray(np.random.default_rng(0).integers(0, 200, (2, 12, 13, 3)).astype(np.uint8))
    planes = normalized(pictures, both, jnp.float32)
    assert planes.shape == (2, 12, 13, 6)
    plain = normalized(pictures, both.model_copy(update={"local_contrast": 0}), jnp.float32)
    np.testing.assert_allclose(planes[..., :3], plain, rtol=1e-6)
    np.testing.assert_allclose(planes[..., 3:], normalized(pictures + 30, both, jnp.float32)[..., 3:], atol=1e-4)
    model = make(both, DataSpec({"inputs": Field((12, 13, 3), "uint8")}, classes=tuple("abcde")))
    first = model.specs()["stages"]["0"]["widen"] if block == "small" else model.specs()["stem"]["kernel"]
    assert first.shape[2] == 6
    assert np.isfinite(classify(model)(params_of(model), pictures)).all()
