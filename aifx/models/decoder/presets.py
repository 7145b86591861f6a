"""Named models: the `[model]` values that a preset puts where the project sets none. Pure data.

`tiny` and `small`: rotary positions, SwiGLU of 8/3 of the width (Shazeer 2020, arXiv 2002.05202), RMS norm also of
queries and keys (Henry et al. 2020, arXiv 2010.04245), tied embeddings, no biases.

Sources: GPT-2, openai/gpt-2 `src/model.py` and the `hparams.json` of each released size; the real vocabulary of 50,257
is kept, not padded. Llama 3, 3.1 and 3.2, the `config.json` of each released model; Llama 3.1 and 3.2 were trained to
8,192 tokens before their context was stretched, and that is the context given here.
"""

from __future__ import annotations

from typing import Any

_GPT2: dict[str, Any] = {
    "vocab_size": 50257,
    "max_seq_len": 1024,
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "positions": "learned",
    "activation": "gelu_tanh",
    "bias": True,
    "tie_embeddings": True,
}

_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_seq_len": 8192,
    "norm": "rms_norm",
    "norm_epsilon": 1e-5,
    "positions": "rotary",
    "rope_theta": 500_000.0,
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
    "num_kv_heads": 8,
}

_LLAMA3_2: dict[str, Any] = {**_LLAMA3, "tie_embeddings": True}

_MODERN: dict[str, Any] = {
    "norm": "rms_norm",
    "qk_norm": True,
    "positions": "rotary",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {**_MODERN, "num_layers": 6, "embed_dim": 256, "num_heads": 4, "mlp_dim": 704},
    "small": {**_MODERN, "num_layers": 8, "embed_dim": 512, "num_heads": 8, "mlp_dim": 1408},
    # The size that nanoGPT trains on characters and that benchmarks/train_vs_pytorch.py measures; any vocabulary.
    "gpt2-10m": {
        **{k: v for k, v in _GPT2.items() if k not in ("vocab_size", "max_seq_len")},
        "num_layers": 6,
        "embed_dim": 384,
        "num_heads": 6,
    },
    "gpt2-124m": {**_GPT2, "num_layers": 12, "embed_dim": 768, "num_heads": 12},
    "gpt2-355m": {**_GPT2, "num_layers": 24, "embed_dim": 1024, "num_heads": 16},
    "gpt2-774m": {**_GPT2, "num_layers": 36, "embed_dim": 1280, "num_heads": 20},
    "gpt2-1558m": {**_GPT2, "num_layers": 48, "embed_dim": 1600, "num_heads": 25},
    "llama3.2-1b": {**_LLAMA3_2, "num_layers": 16, "embed_dim": 2048, "num_heads": 32, "mlp_dim": 8192},
    "llama3.2-3b": {**_LLAMA3_2, "num_layers": 28, "embed_dim": 3072, "num_heads": 24, "mlp_dim": 8192},
    "llama3-8b": {**_LLAMA3, "num_layers": 32, "embed_dim": 4096, "num_heads": 32, "mlp_dim": 14336},
    "llama3-70b": {**_LLAMA3, "num_layers": 80, "embed_dim": 8192, "num_heads": 64, "mlp_dim": 28672},
    "llama3.1-405b": {**_LLAMA3, "num_layers": 126, "embed_dim": 16384, "num_heads": 128, "mlp_dim": 53248},
}
