"""Residual networks of Hugging Face.

Source: `modeling_resnet.py` and `configuration_resnet.py` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifx.models.hub import Architecture, HubConfig, Tensor
from aifx.models.resnet.deep import BOTTLENECK, SHORTCUT, DeepResnet
from aifx.models.resnet.section import ResnetSection

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def _read(config: HubConfig) -> dict[str, Any]:
    config.expect("hidden_act", "relu")
    config.expect("downsample_in_first_stage", False)
    config.pass_over("out_features", "out_indices", "stage_names")  # what a detector reads
    block = config.read("layer_type", str, "bottleneck")
    if block not in ("basic", "bottleneck"):
        raise config.refused("layer_type", "aifx has basic and bottleneck")
    outputs = _numbers(config, "hidden_sizes", [256, 512, 1024, 2048])
    ratio = BOTTLENECK if block == "bottleneck" else 1
    if any(size % ratio for size in outputs):
        raise config.refused("hidden_sizes", f"the width of a bottleneck is a {BOTTLENECK}th of it")
    channels = [size // ratio for size in outputs]
    stem = config.read("embedding_size", int, 64)
    if stem != channels[0]:
        raise config.refused("embedding_size", f"aifx's stem is as wide as the first stage, {channels[0]}")
    is_early = config.read("downsample_in_bottleneck", bool, False)
    return {
        "block": block,
        "channels": channels,
        "blocks_per_stage": _numbers(config, "depths", [3, 4, 6, 3]),
        "stem": "7x7",
        "bottleneck_stride": "1x1" if is_early else "3x3",
        "norm": "frozen_batch",
    }


def _numbers(config: HubConfig, key: str, default: list[int]) -> list[int]:
    found: list[Any] = config.read(key, list, default)
    if not found or not all(type(one) is int and one > 0 for one in found):
        raise config.refused(key, "it has a positive number for each stage")
    return found


def _tensors(section: ResnetSection) -> Iterator[Tensor]:
    network = DeepResnet(section, image_shape=(1, 1, 1), num_outputs=1)  # whose blocks do not depend on these
    stem = (network.stem_size, network.stem_size)
    yield from _convolution("resnet.embedder.embedder", "stem/kernel", "stem/norm", stem)
    for block in network.blocks():
        file = f"resnet.encoder.stages.{block.stage}.layers.{block.name}"
        ours = f"stages/{block.stage}/blocks/{block.name}"
        for number, (name, size, *_) in enumerate(block.convolutions):
            key = "shortcut" if name == SHORTCUT else f"layer.{number}"
            yield from _convolution(f"{file}.{key}", f"{ours}/{name}", f"{ours}/{name}_norm", (size, size))
    yield Tensor("classifier.1.weight", ("output/weight",), True)
    yield Tensor("classifier.1.bias", ("output/bias",))


def _convolution(key: str, kernel: str, norm: str, size: tuple[int, int]) -> Iterator[Tensor]:
    yield Tensor(f"{key}.convolution.weight", (kernel,), kernel=size)
    for theirs, ours in _NORM.items():
        yield Tensor(f"{key}.normalization.{theirs}", (f"{norm}/{ours}",))


ARCHITECTURES = (
    Architecture(
        "ResNetForImageClassification",
        "resnet",
        _read,
        None,
        _tensors,
        prefix="resnet.",
        buffers=r"(embedder\.embedder|encoder\.stages\.\d+\.layers\.\d+\.(layer\.\d+|shortcut))"
        r"\.normalization\.num_batches_tracked",
        embedding_key=None,
        task="vision",
    ),
)
