"""Tiny Llamas as runs, and what MaxText's layout of them is, written down apart from the code that is tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SCALED = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip

CASES = {
    "halves": ("llama", {"rope_theta": 5e5}),
    "interleaved": ("llama", {"rope_parameters": SCALED}),
    "tied": ("llama-one-layer-one-kv-head", {}),
}


def llama(folder: Path, stored: Path, changes: dict[str, Any]) -> Path:
    """A copy of a stored Llama with other values in `config.json`, whose rotary positions MaxText has."""
    shutil.copytree(stored, folder)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def maxtext_of(tensors: dict[str, np.ndarray], config: dict[str, Any], *, is_scanned: bool) -> dict[str, np.ndarray]:
    """MaxText's arrays by name, of those of Hugging Face. As `to_maxtext.py` and `LLAMA31_*` of MaxText make them."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    embed = config["hidden_size"]
    width = config.get("head_dim") or embed // heads
    rope = config.get("rope_parameters") or {}

    def turned(matrix: np.ndarray) -> np.ndarray:
        if rope.get("rope_type") != "llama3":
            return matrix
        found = np.empty_like(matrix)
        found[..., 0::2], found[..., 1::2] = matrix[..., : width // 2], matrix[..., width // 2 :]
        return found

    def layer(i: int) -> dict[str, np.ndarray]:
        def stored(name: str) -> np.ndarray:
            return tensors[f"model.layers.{i}.{name}.weight"].T

        query, key, value = (stored(f"self_attn.{one}_proj").reshape(embed, -1, width) for one in "qkv")
        return {
            "pre_self_attention_layer_norm/scale": stored("input_layernorm"),
            "post_self_attention_layer_norm/scale": stored("post_attention_layernorm"),
            "self_attention/query/kernel": turned(query) * np.float32(1 / np.sqrt(width)),
            "self_attention/key/kernel": turned(key),
            "self_attention/value/kernel": value,
            "self_attention/out/kernel": stored("self_attn.o_proj").reshape(heads, width, embed),
            "mlp/wi_0/kernel": stored("mlp.gate_proj"),
            "mlp/wi_1/kernel": stored("mlp.up_proj"),
            "mlp/wo/kernel": stored("mlp.down_proj"),
        }

    root = "params/params"
    found = {
        f"{root}/token_embedder/embedding": tensors["model.embed_tokens.weight"],
        f"{root}/decoder/decoder_norm/scale": tensors["model.norm.weight"],
    }
    if not config.get("tie_word_embeddings"):
        found[f"{root}/decoder/logits_dense/kernel"] = tensors["lm_head.weight"].T
    each = [layer(i) for i in range(layers)]
    for name in each[0]:
        if is_scanned:
            found[f"{root}/decoder/layers/{name}"] = np.stack([one[name] for one in each], axis=1)
        else:
            found |= {f"{root}/decoder/layers_{i}/{name}": one[name] for i, one in enumerate(each)}
    return found


def maxtext_logits(arrays: dict[str, np.ndarray], config: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """The logits `[batch, seq, vocab]` of MaxText's Llama with unscanned arrays, in float64.

    As `attentions.py`, `embeddings.py` and `decoders.py` in `layers/` of MaxText e591f30: attention's scores are not
    divided by the root of the head's width.
    """
    seq, heads = tokens.shape[1], config["num_attention_heads"]
    arrays = {key.removeprefix("params/params/"): value.astype(np.float64) for key, value in arrays.items()}
    rope = config.get("rope_parameters") or config
    is_llama31 = rope.get("rope_type") == "llama3"

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * arrays[name]

    def rotary(x: np.ndarray) -> np.ndarray:
        """`x`: `[batch, seq, heads, width]`."""
        width = x.shape[-1]
        fractions = 2 * np.arange(width // 2) / width
        if is_llama31:  # LLaMARotaryEmbedding
            fractions = np.repeat(fractions, 2)
        frequencies = 1 / rope.get("rope_theta", 1e4) ** fractions
        if is_llama31:
            frequencies = np.array([llama31_scaled(one) for one in frequencies])
            angles = np.arange(seq)[:, None, None] * frequencies
            other = np.where(np.arange(width) % 2, np.roll(x, 1, -1), np.roll(x, -1, -1))
            return x * np.cos(angles) + other * np.sin(angles) * np.tile([-1, 1], width // 2)
        angles = np.tile(np.arange(seq)[:, None, None] * frequencies, 2)  # RotaryEmbedding
        first, second = np.split(x, 2, -1)
        return x * np.cos(angles) + np.concatenate((-second, first), -1) * np.sin(angles)

    x = arrays["token_embedder/embedding"][tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"decoder/layers_{i}"
        y = norm(x, f"{layer}/pre_self_attention_layer_norm/scale")
        query, key, value = (
            np.einsum("bse,ehd->bshd", y, arrays[f"{layer}/self_attention/{name}/kernel"])
            for name in ("query", "key", "value")
        )
        query, key = rotary(query), rotary(key)
        key, value = (np.repeat(one, heads // one.shape[2], axis=2) for one in (key, value))
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) + np.triu(np.full((seq, seq), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
        x = x + np.einsum("bqhd,hde->bqe", mixed, arrays[f"{layer}/self_attention/out/kernel"])
        y = norm(x, f"{layer}/post_self_attention_layer_norm/scale")
        gate, up = (y @ arrays[f"{layer}/mlp/{name}/kernel"] for name in ("wi_0", "wi_1"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ arrays[f"{layer}/mlp/wo/kernel"]
    x = norm(x, "decoder/decoder_norm/scale")
    if config.get("tie_word_embeddings"):
        return x @ arrays["token_embedder/embedding"].T
    return x @ arrays["decoder/logits_dense/kernel"]


def llama31_scaled(frequency: float) -> float:
    """`LLaMARotaryEmbedding._apply_scaling_factor`."""
    length, low, high, factor = 8192, 1, 4, 8
    wavelength = 2 * np.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency
