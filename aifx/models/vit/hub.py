"""Vision transformers of Hugging Face.

Source: `modeling_vit.py` and `configuration_vit.py` of transformers 5.24. Its files keep the names of earlier versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifx.models.hub import Architecture, HubConfig, Tensor
from aifx.models.vit.section import VitSection

MOST_LAYERS = 10_000
"""Ten times as many as any model has: what is made for each layer stays small."""

_LINEAR = {
    "attention.attention.query": ("attention/query", "attention/query_bias"),
    "attention.attention.key": ("attention/key", "attention/key_bias"),
    "attention.attention.value": ("attention/value", "attention/value_bias"),
    "attention.output.dense": ("attention/output", "attention/output_bias"),
    "intermediate.dense": ("mlp/up", "mlp/up_bias"),
    "output.dense": ("mlp/down", "mlp/down_bias"),
}


def _read(config: HubConfig) -> dict[str, Any]:
    config.expect("hidden_act", "gelu")
    config.expect("qkv_bias", True)
    config.pass_over("pooler_act", "pooler_output_size", "encoder_stride")  # of other heads
    num_layers = config.read("num_hidden_layers", int, 12)
    if not 0 < num_layers <= MOST_LAYERS:
        raise config.refused("num_hidden_layers", f"it is from 1 to {MOST_LAYERS:,}")
    return {
        "patch_size": config.read("patch_size", int, 16),
        "num_layers": num_layers,
        "embed_dim": config.read("hidden_size", int, 768),
        "num_heads": config.read("num_attention_heads", int, 12),
        "mlp_dim": config.read("intermediate_size", int, 3072),
        "norm_epsilon": config.read("layer_norm_eps", float, 1e-12),
    }


def _tensors(section: VitSection) -> Iterator[Tensor]:
    patches, size = "vit.embeddings.patch_embeddings.projection", section.patch_size
    yield Tensor("vit.embeddings.cls_token", ("embedding/class",), leading=2)
    yield Tensor("vit.embeddings.position_embeddings", ("embedding/position",), leading=1)
    yield Tensor(f"{patches}.weight", ("embedding/patch",), kernel=(size, size))
    yield Tensor(f"{patches}.bias", ("embedding/patch_bias",))
    for i in range(section.num_layers):
        file, ours = f"vit.encoder.layer.{i}", f"layers/{i}"
        for key, name in (("layernorm_before", "attention_norm"), ("layernorm_after", "mlp_norm")):
            yield from _norm(f"{file}.{key}", f"{ours}/{name}")
        for key, (weight, bias) in _LINEAR.items():
            yield Tensor(f"{file}.{key}.weight", (f"{ours}/{weight}",), True)
            yield Tensor(f"{file}.{key}.bias", (f"{ours}/{bias}",))
    yield from _norm("vit.layernorm", "final_norm")
    yield Tensor("classifier.weight", ("output/weight",), True)
    yield Tensor("classifier.bias", ("output/bias",))


def _norm(key: str, name: str) -> Iterator[Tensor]:
    yield Tensor(f"{key}.weight", (f"{name}/scale",))
    yield Tensor(f"{key}.bias", (f"{name}/bias",))


ARCHITECTURES = (
    Architecture(
        "ViTForImageClassification",
        "vit",
        _read,
        None,
        _tensors,
        prefix="vit.",
        buffers="(?!)",  # none
        embedding_key=None,
        task="vision",
    ),
)
