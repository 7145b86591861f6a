"""A folder of Hugging Face with the shape of SmolLM2-135M and random weights, for benchmarks.

python benchmarks/smollm_shape.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 49152,
}
END = "<|endoftext|>"


def write_folder(folder: Path) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    (folder / "tokenizer.json").write_bytes(tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "tokenizer_class": "GPT2Tokenizer"}))
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    width, mlp, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 3 * 64

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return 0.02 * rng.standard_normal((outputs, inputs), np.float32)

    ones = np.ones(width, np.float32)
    found = {"model.embed_tokens.weight": matrix(CONFIG["vocab_size"], width), "model.norm.weight": ones}
    for layer in range(CONFIG["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        found |= {f"{name}.{norm}_layernorm.weight": ones.copy() for norm in ("input", "post_attention")}
        for part, outputs, inputs in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv, width),
            ("self_attn.v_proj", kv, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", mlp, width),
            ("mlp.up_proj", mlp, width),
            ("mlp.down_proj", width, mlp),
        ):
            found[f"{name}.{part}.weight"] = matrix(outputs, inputs)
    return found


def tokenizer() -> bytes:
    """The 256 bytes, and names for all other tokens, which no text becomes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"t{number}" for number in range(CONFIG["vocab_size"] - len(tokens))]
    found = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    found.add_special_tokens([END])
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    return found.to_str().encode()


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
