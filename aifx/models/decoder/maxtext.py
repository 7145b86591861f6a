"""Llama in MaxText's layout: the names and shapes of its arrays, by its own converters.

Source: MaxText e591f30 (2026-08-22), `src/maxtext`: `checkpoint_conversion/utils/param_mapping.py` (LLAMA31_*),
`checkpoint_conversion/standalone_scripts/llama_or_mistral_ckpt.py` (Llama 2 and 3) and `layers/embeddings.py`.

Its shapes are ours. What differs: attention divides no scores by the root of `head_dim`, which the matrix of queries
has in it; rotary positions of Llama 3.1 turn neighbouring features of a head (`LLaMARotaryEmbedding`) where ours, and
its own for other models (`RotaryEmbedding`), turn the two halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from aifx.core.errors import ConfigError
from aifx.models.decoder.section import DecoderSection, attention_biases, head_dim
from aifx.models.hub import Array, Tensor
from aifx.specs import ArraySpec

_ROOT = "params/params"
_SCAN_AXIS = 1  # base.yml: param_scan_axis
_LLAMA31 = {
    "rope_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_len": 8192,
}
"""The frequencies that `LLaMARotaryEmbedding` computes, whatever MaxText's configuration says."""

_LAYER = {
    "pre_self_attention_layer_norm/scale": "attention_norm/scale",
    "self_attention/query/kernel": "attention/query",
    "self_attention/key/kernel": "attention/key",
    "self_attention/value/kernel": "attention/value",
    "self_attention/out/kernel": "attention/output",
    "post_self_attention_layer_norm/scale": "mlp_norm/scale",
    "mlp/wi_0/kernel": "mlp/gate",
    "mlp/wi_1/kernel": "mlp/up",
    "mlp/wo/kernel": "mlp/down",
}


@dataclass(frozen=True)
class MaxTextTensor(Tensor):
    """An array of MaxText: one of the model, or those of all layers along its axis 1.

    Attributes:
        factor: what MaxText's numbers are, as a multiple of ours.
        is_interleaved: whether a head's features are those of the two halves in turn.
        is_stacked: whether it holds all layers.
    """

    factor: float = 1.0
    is_interleaved: bool = False
    is_stacked: bool = False

    def shape(self, specs: Mapping[str, ArraySpec]) -> tuple[int, ...]:
        shape = specs[self.arrays[0]].shape
        return (*shape[:_SCAN_AXIS], len(self.arrays), *shape[_SCAN_AXIS:]) if self.is_stacked else shape

    def divide(self, value: Array, specs: Mapping[str, ArraySpec]) -> Iterator[tuple[str, Array]]:
        layers = np.moveaxis(value, _SCAN_AXIS, 0) if self.is_stacked else (value,)
        for name, layer in zip(self.arrays, layers, strict=True):
            if self.is_interleaved:
                layer = np.concatenate((layer[..., ::2], layer[..., 1::2]), axis=-1)
            yield name, np.ascontiguousarray(_scaled(layer, 1 / self.factor))

    def join(self, arrays: Mapping[str, Array], specs: Mapping[str, ArraySpec]) -> Array:
        layers = [_scaled(arrays[name], self.factor) for name in self.arrays]
        joined = np.stack(layers, axis=_SCAN_AXIS) if self.is_stacked else layers[0]
        if self.is_interleaved:
            joined = np.stack(np.split(joined, 2, axis=-1), axis=-1).reshape(joined.shape)
        return joined


def maxtext_tensors(section: DecoderSection, *, is_scanned: bool) -> Iterator[MaxTextTensor]:
    """The arrays of a Llama. Raises ConfigError for one that MaxText does not compute."""
    is_interleaved = _check(section)
    layers = [f"layers/{i}" for i in range(section.num_layers)]
    yield MaxTextTensor(f"{_ROOT}/token_embedder/embedding", ("embedding/token",))
    for place, ours in [("layers", layers)] if is_scanned else [(f"layers_{i}", [one]) for i, one in enumerate(layers)]:
        for key, name in _LAYER.items():
            yield MaxTextTensor(
                f"{_ROOT}/decoder/{place}/{key}",
                tuple(f"{layer}/{name}" for layer in ours),
                factor=1 / math.sqrt(head_dim(section)) if name == "attention/query" else 1.0,
                is_interleaved=is_interleaved and name in ("attention/query", "attention/key"),
                is_stacked=is_scanned,
            )
    yield MaxTextTensor(f"{_ROOT}/decoder/decoder_norm/scale", ("final_norm/scale",))
    if not section.tie_embeddings:
        yield MaxTextTensor(f"{_ROOT}/decoder/logits_dense/kernel", ("output",))


def _check(section: DecoderSection) -> bool:
    """Whether features of heads are interleaved. Raises ConfigError for what MaxText's Llama does not compute."""
    if any(attention_biases(section)):
        raise _refused(f'model.attention_bias = "{section.attention_bias}"', "MaxText's Llama has no biases")
    if section.rope_scaling == "none":
        return False
    if section.rope_scaling != "llama3":
        why = "MaxText's Llama has none, or Llama 3.1's"
        raise _refused(f'model.rope_scaling = "{section.rope_scaling}"', why)
    for key, value in _LLAMA31.items():
        if (found := getattr(section, key)) != value:
            raise _refused(f"model.{key} = {found}", f"MaxText computes Llama 3.1's {value:g}, whatever is configured")
    return True


def _refused(what: str, why: str) -> ConfigError:
    return ConfigError(f"{what} has no place in MaxText's layout", why, "docs/export.md")


def _scaled(value: Array, factor: float) -> Array:
    """The product in float32; `value` itself if the factor is 1."""
    return value if factor == 1 else value.astype(np.float32) * np.float32(factor)
