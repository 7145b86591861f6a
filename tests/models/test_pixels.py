"""Pixels are normalized by stored means and deviations, otherwise each image by its own."""

import json
import os
import re

import inprocess
import numpy as np
import pytest

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.models.resnet import ResnetSection
from aifx.models.resnet.model import make as make_resnet
from aifx.models.vit import VitSection
from aifx.models.vit.model import make as make_vit
from aifx.nn.layers import normalized_pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)


def test_by_each_channels_mean_and_deviation():
    section = VitSection(pixel_mean=(0.4, 0.5, 0.6), pixel_std=(0.2, 0.1, 0.3))
    got = normalized_pixels(IMAGES, section.pixel_mean, section.pixel_std, np.float32)
    np.testing.assert_allclose(got, (IMAGES / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.1, 0.3], atol=1e-5)


def test_each_image_by_its_own():
    got = np.asarray(normalized_pixels(IMAGES, (), (), np.float32))
    np.testing.assert_allclose(got.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std((1, 2, 3)), 1, atol=1e-3)


@pytest.mark.parametrize(("section", "make"), [(ResnetSection, make_resnet), (VitSection, make_vit)])
def test_a_mean_for_each_channel(section, make):
    data = DataSpec({"inputs": Field((4, 4, 1), "uint8")}, classes=("a", "b"))
    values = {"pixel_mean": (0.5,), "pixel_std": (0.5,)}
    make(section(channels=(4,), **values) if section is ResnetSection else section(**values), data)
    with pytest.raises(ConfigError, match="images have 1 channels"):
        make(section(pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3), data)


def test_a_mean_without_a_deviation_is_a_conflict(tmp_path):
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "vision"\n[model]\npixel_mean = [0.5]\n')
    done = inprocess.run(["config", "check", "--json"], tmp_path, {**os.environ})
    assert done.returncode == 2
    assert re.search(r"pixel_mean\D* 1\D*pixel_std\D* 0", json.dumps(json.loads(done.stdout)) + done.stderr)
