"""Random decoders, with the options of imported architectures, train on random meshes as on one device."""

from __future__ import annotations

import random
from typing import Any

import pytest
from effort import parts
from running_trials import check_equal, run_trials

QUICK, ALL = 2, 50
DEVICES = 8


def draw(seed: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Values of `[model]` and axes of a mesh of all devices."""
    rng = random.Random(seed)
    heads = rng.choice([4, 8])
    model: dict[str, Any] = {
        "num_layers": rng.choice([2, 3]),
        "embed_dim": rng.choice([32, 48]),
        "num_heads": heads,
        "num_kv_heads": rng.choice([1, 2, heads]),
        "head_dim": rng.choice([4, 8, 12]),
        "mlp_dim": 64,
        "norm": rng.choice(["layer_norm", "rms_norm"]),
        "norm_placement": rng.choice(["before", "after", "both"]),
        "norm_offset": rng.random() < 0.5,
        "attention_bias": rng.choice(["none", "qkv", "all"]),
        "windows": rng.choice([[], [5], [7, 0], [0, 3, 40]]),
        "attention_softcap": rng.choice([None, 2.0]),
        "attention_scale": rng.choice([None, 0.3]),
        "logit_softcap": rng.choice([None, 3.0]),
        "embedding_scale": rng.random() < 0.5,
        "qk_norm": rng.random() < 0.7,
        "qk_norm_over": rng.choice(["head", "heads"]),
        "positions": rng.choice(["rotary", "rotary", "rotary", "learned"]),
        "rope_window_theta": rng.choice([None, 100.0]),
        "rope_fraction": rng.choice([1.0, 0.5]),
        "rope_layers": rng.choice([[True], [True, False]]),
        "activation": rng.choice(["gelu_tanh", "swiglu", "geglu_tanh"]),
        "bias": rng.random() < 0.3,
        "tie_embeddings": rng.random() < 0.5,
        "remat": rng.choice(["none", "full", "dots"]),
    }
    scaling = rng.choice(["none", "linear", "llama3", "yarn"])
    model |= {"rope_scaling": scaling, "rope_factor": 4.0, "rope_original_len": 16}
    model["scan_layers"] = len(set(model["windows"])) < 2 and len(set(model["rope_layers"])) < 2 and rng.random() < 0.5
    mesh = dict.fromkeys(("data", "fsdp", "tensor", "context"), 1)
    for _ in range(DEVICES.bit_length() - 1):
        mesh[rng.choice([axis for axis in mesh if axis != "tensor" or mesh[axis] < 4])] *= 2
    if model["qk_norm"] and model["qk_norm_over"] == "heads":  # which is refused on devices that divide heads
        mesh |= {"fsdp": mesh["fsdp"] * mesh["tensor"], "tensor": 1}
    return model, mesh


def settings(model: dict[str, Any]) -> list[str]:
    from aifx.config.toml import literal

    values = [f"model.{key}={literal(value)}" for key, value in model.items() if value is not None]
    return [*values, "train.num_steps=3", "mesh.context_method=gather"]


def compare(seeds: range) -> None:
    requests = {}
    for seed in seeds:
        model, mesh = draw(seed)
        requests[f"{seed} one"] = ("text", settings(model), 1)
        requests[f"{seed} mesh"] = ("text", settings(model) + [f"mesh.{k}={v}" for k, v in mesh.items()], DEVICES)
    found = run_trials(requests)
    failed = []
    for seed in seeds:
        one, many = found[f"{seed} one"], found[f"{seed} mesh"]
        assert "losses" in one, (seed, one)
        assert "losses" in many, (seed, many)
        try:
            check_equal(many, one, 1e-5)
        except AssertionError as error:
            failed.append(f"{seed}: {draw(seed)}\n{error}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.slow
def test_a_few_random_decoders_train_on_meshes_as_on_one_device() -> None:
    compare(range(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(5))
def test_random_decoders_train_on_meshes_as_on_one_device(part: int) -> None:
    compare(range(QUICK + 10 * part, min(QUICK + 10 * (part + 1), ALL)))


def test_the_draws_have_each_option() -> None:
    """Otherwise a draw of one value would pass for a test of an option."""
    models, meshes = zip(*(draw(seed) for seed in range(ALL)), strict=True)
    for key in models[0]:
        assert len({str(model[key]) for model in models}) > 1 or key in ("mlp_dim", "rope_factor", "rope_original_len")
    for axis in meshes[0]:
        assert {1, 2} < {mesh[axis] for mesh in meshes}
