"""Encoders of Hugging Face's BERT.

Source: `modeling_bert.py` and `configuration_bert.py` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifx.models.bert.section import BertSection
from aifx.models.hub import Architecture, HubConfig, Tensor

MOST_LAYERS = 10_000
"""Ten times as many as any model has: what is made for each layer stays small."""

_LINEAR = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/output",
    "intermediate.dense": "mlp/up",
    "output.dense": "mlp/down",
}
_NORMS = {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "mlp_norm"}
_TABLES = {"word_embeddings": "token", "position_embeddings": "position", "token_type_embeddings": "segment"}


def _read(config: HubConfig) -> dict[str, Any]:
    config.expect("hidden_act", "gelu")
    config.expect("position_embedding_type", "absolute")
    config.expect("is_decoder", False)
    config.expect("add_cross_attention", False)
    config.pass_over("gradient_checkpointing", "classifier_dropout", "tie_word_embeddings")  # of training and heads
    num_layers = config.read("num_hidden_layers", int, 12)
    if not 0 < num_layers <= MOST_LAYERS:
        raise config.refused("num_hidden_layers", f"it is from 1 to {MOST_LAYERS:,}")
    embed_dim, num_heads = config.read("hidden_size", int, 768), config.read("num_attention_heads", int, 12)
    if num_heads < 1 or embed_dim % num_heads:
        raise config.refused("num_attention_heads", f"each head has an equal part of hidden_size = {embed_dim}")
    return {
        "vocab_size": config.read("vocab_size", int, 30522),
        "max_seq_len": config.read("max_position_embeddings", int, 512),
        "num_segments": config.read("type_vocab_size", int, 2),
        "num_layers": num_layers,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "mlp_dim": config.read("intermediate_size", int, 3072),
        "norm_epsilon": config.read("layer_norm_eps", float, 1e-12),
    }


def _tensors(section: BertSection) -> Iterator[Tensor]:
    for key, name in _TABLES.items():
        yield Tensor(f"bert.embeddings.{key}.weight", (f"embedding/{name}",))
    yield from _norm("bert.embeddings.LayerNorm", "embedding/norm")
    for i in range(section.num_layers):
        file, ours = f"bert.encoder.layer.{i}", f"layers/{i}"
        for key, name in _LINEAR.items():
            yield Tensor(f"{file}.{key}.weight", (f"{ours}/{name}",), True)
            yield Tensor(f"{file}.{key}.bias", (f"{ours}/{name}_bias",))
        for key, name in _NORMS.items():
            yield from _norm(f"{file}.{key}", f"{ours}/{name}")


def _norm(key: str, name: str) -> Iterator[Tensor]:
    yield Tensor(f"{key}.weight", (f"{name}/scale",))
    yield Tensor(f"{key}.bias", (f"{name}/bias",))


ARCHITECTURES = (
    Architecture(
        "BertModel",
        "bert",
        _read,
        None,
        _tensors,
        prefix="bert.",
        buffers=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)",  # the pooler is for pairs of sentences
        embedding_key=None,
        task="embedding",
    ),
)
