"""Random models, optimizers and meshes train as on one device, or are refused."""

from __future__ import annotations

import random
import re
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from effort import IS_LONG, seed_of_commit
from mesh_trials import FAMILIES
from running_trials import OF_INT8_CHANGES, OF_INT8_NORMS, differences, run_trials

from aifx.config.sections import OptimizerSection

KINDS = ("text", "gpt2", "vit", "other")
"""Families that are drawn in turn, so that each run of a few draws has all of them. `other`: one of the others."""

OPTIMIZER: dict[str, list[Any]] = {
    "learning_rate": [0.003, 0.01], "adam_learning_rate": [None, 0.001, 0.01], "weight_decay": [0.0, 0.1, 0.5],
    "beta1": [0.0, 0.9], "beta2": [0.9, 0.99], "epsilon": [1e-8, 1e-4], "momentum": [0.0, 0.5, 0.95],
    "ns_steps": [1, 2, 3, 4, 5, 6], "clip_norm": [0.0, 0.1, 1.0], "ema_decay": [0.0, 0.5, 0.9],
}  # fmt: skip
"""Values of the settings of `[optimizer]` that are numbers. Of the others, every value is drawn."""

ONLY = {"train.num_steps": "4", "finetune.base": "base", "finetune.adapter": "lora"}
"""Settings that draws have with one value, if at all."""


def random_request(draw: random.Random, kind: str) -> tuple[str, list[str], int]:
    """A family, settings of a small model of it, and a number of devices with a mesh over them."""
    devices = draw.choice([2, 3, 4, 4, 5, 6, 7, 8, 8])
    family = draw.choice(sorted(FAMILIES.keys() - set(KINDS))) if kind == "other" else kind
    batch = draw.choice([6, 16, *6 * [4 * devices]])
    settings = {
        "train.global_batch_size": batch,
        "train.gradient_accumulation": draw.choice([n for n in (1, 2, 4) if batch % n == 0]),
        "train.num_steps": 4,
        "train.parameter_dtype": draw.choice(["float32", "float32", "bfloat16"]),
    }
    settings |= random_optimizer(draw)
    if kind in ("text", "gpt2"):
        settings |= random_decoder(draw, family) | random_axes(draw, devices)
    else:
        settings["mesh.fsdp"] = draw.choice([n for n in range(1, devices + 1) if devices % n == 0])
    if family == "vit":
        heads = draw.choice([1, 2, 4])
        settings |= {"model.num_heads": heads, "model.embed_dim": heads * draw.choice([8, 12])}
        settings["model.mlp_dim"] = draw.choice([settings["model.embed_dim"], 40])
        settings["model.scan_layers"] = draw.choice(["true", "false"])
    return family, [f"{name}={value}" for name, value in settings.items()], devices


def random_optimizer(draw: random.Random) -> dict[str, Any]:
    """A value of each setting, so that an optimizer or a setting that is new is drawn as well."""
    values = {}
    for name, field in OptimizerSection.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else OPTIMIZER[name]
        values[f"optimizer.{name}"] = draw.choice(choices)
    return {name: value for name, value in values.items() if value is not None}


def random_axes(draw: random.Random, devices: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    rest = devices
    for axis in draw.sample(["fsdp", "tensor", "context"], 3):
        sizes[axis] = draw.choice([n for n in range(1, rest + 1) if rest % n == 0])
        rest //= sizes[axis]
    sizes["context_method"] = draw.choice(["gather", "gather", "ring"])
    return {f"mesh.{name}": value for name, value in sizes.items()}


def random_decoder(draw: random.Random, family: str) -> dict[str, Any]:
    """`[model]` and `[data]`, and an adapter or none."""
    kv_heads = draw.choice([1, 2, 4])
    heads = kv_heads * draw.randint(1, 3)
    model: dict[str, Any] = {
        "num_layers": draw.randint(1, 3), "num_heads": heads, "remat": draw.choice(["none", "dots", "full"]),
        "scan_layers": draw.choice(["true", "false"]), "dropout": draw.choice([0.0, 0.0, 0.2]),
    }  # fmt: skip
    if family == "gpt2":  # whose other settings are those of the preset
        model["embed_dim"] = 8 * heads
    else:
        model |= {
            "num_kv_heads": kv_heads, "head_dim": draw.choice([8, 12]), "embed_dim": draw.choice([24, 32, 48]),
            "mlp_dim": draw.choice([32, 60, 64]), "bias": draw.choice(["true", "false"]),
            "positions": draw.choice(["rotary", "learned"]), "norm": draw.choice(["rms_norm", "layer_norm"]),
            "tie_embeddings": draw.choice(["true", "false"]),
        }  # fmt: skip
    settings = {f"model.{name}": value for name, value in model.items()}
    settings["data.packing"] = draw.choice(["stream", "documents"])
    settings["data.vocab_size"] = draw.choice([300, 320, 331])
    if draw.random() < 0.4:
        settings |= {
            "finetune.base": "base", "finetune.adapter": "lora", "lora.rank": draw.choice([2, 4, 8]),
            "lora.dropout": draw.choice([0.0, 0.1]), "finetune.base_quantize": draw.choice(["none", "int8"]),
            "lora.targets": draw.choice(['["attention", "mlp"]', '["output", "up"]']),
        }  # fmt: skip
    return settings


@pytest.mark.slow
def test_random_meshes_train_as_one_device_or_are_refused() -> None:
    seed = seed_of_commit()
    draw = random.Random(seed)
    requests = {
        str(number): random_request(draw, KINDS[number % len(KINDS)]) for number in range(60 if IS_LONG else 12)
    }
    found = run_trials(requests)
    for name in [name for name in requests if "why" in found[name]]:
        refused, (_, settings, _) = found.pop(name), requests.pop(name)
        named = set(re.findall(r"= ?(\d+)\b", f"{refused['what']} {refused['why']}"))
        sizes = {setting.rpartition("=")[2] for setting in settings} - {"1"}
        assert named & sizes, (seed, refused, settings)
        assert refused["hint"].startswith("--set"), (seed, refused)
    assert found, seed
    without = {name: [s for s in settings if not s.startswith("mesh.")] for name, (_, settings, _) in requests.items()}
    alone = run_trials({name: (family, without[name], 1) for name, (family, _, _) in requests.items()})
    for name, request in requests.items():
        compare(found[name], alone[name], request[1], f"{seed} {request}")


def compare(many: dict[str, Any], one: dict[str, Any], settings: list[str], why: str) -> None:
    # What a device or a micro-batch adds to the gradient of a bfloat16 is one, and rounding takes the other neighbour
    # if a sum differs in its last bit. Adam and Muon make as much of a gradient that is mostly rounding as of others.
    is_narrow = "train.parameter_dtype=bfloat16" in settings
    of_norms, of_changes = (
        (OF_INT8_NORMS, OF_INT8_CHANGES) if "finetune.base_quantize=int8" in settings else (1e-6, 0.01)
    )
    assert np.isfinite(one["losses"]).all(), why
    np.testing.assert_allclose(many["losses"][0], one["losses"][0], rtol=1e-6, err_msg=why)
    np.testing.assert_allclose(many["norms"][0], one["norms"][0], rtol=1e-3 if is_narrow else of_norms, err_msg=why)
    for name in ("losses", "evaluated"):
        np.testing.assert_allclose(many[name], one[name], rtol=0.01 if is_narrow else 1e-5, err_msg=why)
    if not is_narrow:
        far = {name: share for name, share in differences(many, one).items() if share > of_changes}
        assert not far, why


def test_the_draws_have_each_option() -> None:
    """Every family, and every optimizer with each of its settings: a draw of one value would test no option."""
    values: dict[str, set[str]] = {"family": set()}
    for seed in range(600):
        family, settings, _ = random_request(random.Random(seed), KINDS[seed % len(KINDS)])
        values["family"].add(family)
        for setting in settings:
            name, _, value = setting.partition("=")
            values.setdefault(name, set()).add(value)
    assert values["family"] == FAMILIES.keys()
    assert {f"optimizer.{name}" for name in OptimizerSection.model_fields} <= values.keys()
    assert {name: min(found) for name, found in values.items() if len(found) == 1} == ONLY
