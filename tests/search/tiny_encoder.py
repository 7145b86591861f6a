"""A folder of a random sentence encoder, and its vectors by NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import erf
from tokenizers import models, normalizers, pre_tokenizers

F64 = NDArray[np.float64]

CONFIG: Mapping[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "position_embedding_type": "absolute",
}
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "aeiou"), "whale", "the", "sea", "##s"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def write_encoder(folder: Path, pooling: str = "pooling_mode_mean_tokens", seed: int = 0) -> Path:
    """Write an encoder as sentence-transformers does."""
    folder.mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    documents: dict[str, Any] = {
        "config.json": CONFIG,
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": 20, "do_lower_case": False},
        "tokenizer_config.json": {"cls_token": "[CLS]", "sep_token": "[SEP]"},
        "1_Pooling/config.json": {
            "word_embedding_dimension": 24,
            **dict.fromkeys(("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"), False),
            pooling: True,
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({token: index for index, token in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(VOCABULARY[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(random_tensors(seed), folder / "model.safetensors")
    return folder


def random_tensors(seed: int) -> dict[str, NDArray[Any]]:
    """Large weights, so that attention and norms matter."""
    source = np.random.default_rng(seed)
    width, hidden = CONFIG["hidden_size"], CONFIG["intermediate_size"]

    def drawn(*shape: int) -> NDArray[Any]:
        return source.standard_normal(shape).astype(np.float32) * 0.4

    found: dict[str, NDArray[Any]] = {"embeddings.position_ids": np.arange(48)[None]}
    for name, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        found[f"embeddings.{name}_embeddings.weight"] = drawn(CONFIG[rows], width)
    linear = {"pooler.dense": (width, width)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        linear |= {f"{at}.attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        linear |= {f"{at}.attention.output.dense": (width, width), f"{at}.intermediate.dense": (hidden, width)}
        linear |= {f"{at}.output.dense": (width, hidden)}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for key, shape in linear.items():
        found |= {f"{key}.weight": drawn(*shape), f"{key}.bias": drawn(shape[0])}
    for key in norms:
        found |= {f"{key}.weight": 1 + drawn(width), f"{key}.bias": drawn(width)}
    return found


def vector_of(folder: Path, text: str, pooling: str) -> F64:
    """The vector of one text without padding, in float64, as Devlin et al. 2018 and Vaswani et al. 2017 define it."""
    weights = {key: value.astype(np.float64) for key, value in load_file(folder / "model.safetensors").items()}
    ids = [VOCABULARY.index(token) for token in ["[CLS]", *_pieces(text)[:18], "[SEP]"]]

    def linear(key: str, x: F64) -> F64:
        return x @ weights[f"{key}.weight"].T + weights[f"{key}.bias"]

    def norm(key: str, x: F64) -> F64:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return scaled * weights[f"{key}.weight"] + weights[f"{key}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        heads = []
        size = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
        q, k, v = (linear(f"{at}.attention.self.{name}", x) for name in ("query", "key", "value"))
        for head in range(CONFIG["num_attention_heads"]):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        attended = linear(f"{at}.attention.output.dense", np.concatenate(heads, 1))
        x = norm(f"{at}.attention.output.LayerNorm", x + attended)
        up = linear(f"{at}.intermediate.dense", x)
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", up * (1 + erf(up / np.sqrt(2))) / 2))
    vector = x[0] if pooling == "pooling_mode_cls_token" else x.mean(0)
    found: F64 = vector / np.linalg.norm(vector)
    return found


def _pieces(text: str) -> list[str]:
    """The longest pieces first, word by word; [UNK] for a word that has none."""
    found = []
    for word in text.lower().split():
        pieces, rest = [], word
        while rest:
            prefix = "##" if pieces else ""
            sizes = [size for size in range(len(rest), 0, -1) if prefix + rest[:size] in WORDS]
            if not sizes:
                pieces = ["[UNK]"]
                break
            pieces.append(prefix + rest[: sizes[0]])
            rest = rest[sizes[0] :]
        found += pieces
    return found
