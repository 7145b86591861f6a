"""Tiny models of transformers, and what it computes with them. Run by a Python that has torch and transformers.

    python tests/hub/peer_models.py make FOLDER [--seed N] [--count K]   fixed and random cases, one folder each
    python tests/hub/peer_models.py store                                tests/hub/stored_logits.{json,npz}
    python tests/hub/peer_models.py check FOLDER                         folders that aifx exported, in each logits.npz
    python tests/hub/peer_models.py check-adapters FOLDER                adapters that aifx exported, with PEFT
    python tests/hub/peer_models.py store-adapters FOLDER                tests/hub/stored_adapter_logits.{json,npz}

`make test-peers` runs all but those that store. Weights are functions of a tensor's name: stored logits need none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
HERE = Path(__file__).parent
VOCAB, SEQ, ROWS, NEW = 64, 24, 2, 8
KEPT = (0, 7, 15, 23)
"""Positions whose logits are stored."""

SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}

FIXED = {
    "llama": ("llama", {**SMALL, "rope_parameters": LLAMA3}),
    "llama-one-layer-one-kv-head": (
        "llama",
        {**SMALL, "num_hidden_layers": 1, "num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 8},
    ),
    "llama-linear-biased": (
        "llama",
        {**SMALL, "attention_bias": True, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama-yarn": ("llama", {**SMALL, "rope_parameters": YARN, "num_key_value_heads": 4}),
    "mistral": ("mistral", {**SMALL, "sliding_window": 6, "head_dim": 6}),
    "mistral-tied": ("mistral", {**SMALL, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**SMALL, "tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {**SMALL, **SLIDING, "num_hidden_layers": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 12}),
    "qwen3-tied": ("qwen3", {**SMALL, "head_dim": 4, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "phi3": ("phi3", {**SMALL, "num_attention_heads": 2, "partial_rotary_factor": 0.5, "pad_token_id": None}),
    "smollm3": ("smollm3", {**SMALL, "num_hidden_layers": 4, "no_rope_layer_interval": 2, "pad_token_id": None}),
    "olmo2": ("olmo2", {**SMALL, "pad_token_id": None}),
    "gemma2": (
        "gemma2",
        {**SMALL, "head_dim": 6, "query_pre_attn_scalar": 10, "sliding_window": 5, "num_hidden_layers": 3,
         "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": (
        "gemma3_text",
        {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "num_hidden_layers": 3,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
         "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
    ),
    "gpt2": ("gpt2", {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt2-wide-untied": (
        "gpt2",
        {"vocab_size": VOCAB, "n_embd": 12, "n_layer": 1, "n_head": 1, "n_positions": 32, "n_inner": 20,
         "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
}  # fmt: skip


def random_cases(seed, count):
    """Cases of every family with random shapes and options."""
    rng = np.random.default_rng(seed)

    def one_of(*values):
        return values[int(rng.integers(len(values)))]

    for number in range(count):
        for kind in sorted({kind for kind, _ in FIXED.values()}):
            kv_heads, tied, layers = one_of(1, 2, 3), one_of(True, False), one_of(1, 2, 3)
            heads = kv_heads * one_of(1, 2)
            if kind == "gpt2":
                config = {"vocab_size": VOCAB, "n_embd": heads * one_of(4, 6), "n_layer": layers, "n_head": heads,
                          "n_positions": 64, "n_inner": one_of(None, 20), "tie_word_embeddings": tied}  # fmt: skip
            else:
                config = {**SMALL, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                          "hidden_size": heads * one_of(4, 8), "num_hidden_layers": layers, "tie_word_embeddings": tied,
                          "intermediate_size": one_of(8, 24), "rms_norm_eps": one_of(1e-6, 1e-5)}  # fmt: skip
                config["rope_parameters"] = one_of({"rope_type": "default", "rope_theta": 500.0}, LLAMA3, YARN)
                config |= one_of({}, {"head_dim": one_of(2, 10)}) if kind in ("llama", "mistral", "qwen3") else {}
            if kind in ("phi3", "smollm3"):
                config |= {"pad_token_id": None}
            if kind == "olmo2":
                config |= {"pad_token_id": None}
            if kind in ("gemma2", "gemma3_text"):
                config |= {"head_dim": one_of(4, 6), "query_pre_attn_scalar": one_of(4, 9), "rope_parameters": None,
                           "tie_word_embeddings": True, "final_logit_softcapping": one_of(None, 4.0),
                           "sliding_window": one_of(3, 30)}  # fmt: skip
            if kind == "phi3":
                config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
                           "partial_rotary_factor": one_of(0.5, 1.0)}  # fmt: skip
            if kind == "smollm3":
                config["no_rope_layer_interval"] = one_of(2, 3)
            if kind in ("mistral", "phi3"):
                config["sliding_window"] = one_of(None, 3, 20)
            if kind in ("qwen2", "qwen3"):
                config |= one_of({}, {**SLIDING, "max_window_layers": one_of(0, 1)})
            yield f"random-{kind}-{seed}-{number}", (kind, config)


def model_of(kind, config):
    """A transformers model whose weights are functions of their names."""
    import torch
    import transformers

    made = transformers.AutoConfig.for_model(kind, **config)
    made._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(made).eval().float()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key != "lm_head.weight" or not made.tie_word_embeddings:
                tensor.copy_(torch.from_numpy(values_of(key, tuple(tensor.shape))))
    model.tie_weights()
    return model


def values_of(key, shape):
    """The values of a tensor. Norms are around 1, and all are far from the small first values of a training."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    noise = rng.normal(scale=0.3, size=shape)
    is_norm = key.endswith("norm.weight") or key.rpartition(".")[0].endswith(("ln_1", "ln_2", "ln_f"))
    return (noise + (1.0 if is_norm and key.endswith("weight") else 0.0)).astype(np.float32)


def inputs():
    return np.random.default_rng(5).integers(0, VOCAB, (ROWS, SEQ))


def answers(model):
    """Logits `[rows, seq, vocab]`, greedy tokens `[rows, new]`, and by how much each was better than the second."""
    import torch

    tokens = torch.from_numpy(inputs())
    greedy, gaps = [], []
    with torch.no_grad():
        logits = model(tokens).logits.numpy()
        for _ in range(NEW):
            best = torch.topk(model(tokens).logits[:, -1], 2)
            greedy.append(best.indices[:, 0].numpy())
            gaps.append((best.values[:, 0] - best.values[:, 1]).numpy())
            tokens = torch.cat([tokens, best.indices[:, :1]], dim=1)
    return {"inputs": inputs(), "logits": logits, "greedy": np.stack(greedy, 1), "gaps": np.stack(gaps, 1)}


def write_tokenizer(folder):
    """Words t0 to t62 and an end, with files as transformers writes them."""
    vocabulary = {**{f"t{i}": i for i in range(VOCAB - 1)}, "<end>": VOCAB - 1}
    added = [{"id": VOCAB - 1, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}]  # fmt: skip
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": VOCAB - 1}))


def make(folder, cases):
    for name, (kind, config) in cases.items():
        model = model_of(kind, config)
        model.save_pretrained(folder / name)
        write_tokenizer(folder / name)
        np.savez(folder / name / "logits.npz", **answers(model))
        sys.stdout.write(f"made {name}\n")


def store():
    import torch
    import transformers

    origin = f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, float32, eager attention"
    stored, arrays = {"origin": origin, "command": "python tests/hub/peer_models.py store", "cases": {}}, {}
    for name, (kind, config) in FIXED.items():
        with tempfile.TemporaryDirectory() as folder:
            model = model_of(kind, config)
            model.save_pretrained(folder)
            from safetensors.numpy import load_file

            shapes = {key: list(value.shape) for key, value in load_file(Path(folder) / "model.safetensors").items()}
            stored["cases"][name] = {"config": json.loads((Path(folder) / "config.json").read_text()), "shapes": shapes}
        found = answers(model)
        arrays[name] = found["logits"][:, KEPT]
        arrays[f"{name}/greedy"], arrays[f"{name}/gaps"] = found["greedy"].astype(np.uint8), found["gaps"]
    (HERE / "stored_logits.json").write_text(json.dumps(stored, indent=1) + "\n")
    np.savez_compressed(HERE / "stored_logits.npz", **arrays)


def check(folder):
    """Compare transformers' logits of exported folders with those that transformers gave for the imported ones."""
    import torch
    import transformers

    worst = 0.0
    for path in sorted(folder.iterdir()):
        want = np.load(path / "logits.npz")["logits"]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            got = model(torch.from_numpy(inputs())).logits.numpy()
        difference = float(np.abs(got - want).max())
        worst = max(worst, difference)
        sys.stdout.write(f"{path.name}: largest difference {difference:.2g}\n")
    return int(worst > 5e-4)


def adapter_logits(folder):
    """The logits of each case's base with the adapter in `FOLDER/CASE`, as PEFT loads it."""
    import peft
    import torch
    import transformers

    for path in sorted(folder.iterdir()):
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder.parent / "imported" / path.name, dtype=torch.float32, attn_implementation="eager"
        )
        model = peft.PeftModel.from_pretrained(base, path).eval()
        loaded = {key for key, _ in model.named_parameters() if "lora_" in key}
        assert len(loaded) == len(json.loads((path / "keys.json").read_text())), "PEFT made other adapters"
        with torch.no_grad():
            yield path.name, model(torch.from_numpy(inputs())).logits.numpy()


def check_adapters(folder):
    worst = 0.0
    for name, got in adapter_logits(folder):
        difference = float(np.abs(got - np.load(folder / name / "logits.npz")["logits"]).max())
        worst = max(worst, difference)
        sys.stdout.write(f"{name} with an adapter: largest difference {difference:.2g}\n")
    return int(worst > 5e-4)


def store_adapters(folder):
    import peft
    import torch
    import transformers

    origin = (
        f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, CPU, float32"
    )
    document = {"origin": origin, "command": "python tests/hub/peer_models.py store-adapters build/peers/adapters"}
    (HERE / "stored_adapter_logits.json").write_text(json.dumps(document, indent=1) + "\n")
    arrays = {name: logits[:, KEPT] for name, logits in adapter_logits(folder) if name in FIXED}
    np.savez_compressed(HERE / "stored_adapter_logits.npz", **arrays)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "store", "check", "check-adapters", "store-adapters"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=4)
    args = parser.parse_args()
    if args.what == "store":
        store()
        return 0
    if args.what == "store-adapters":
        store_adapters(args.folder)
        return 0
    if args.what == "check-adapters":
        return check_adapters(args.folder)
    if args.what == "check":
        return check(args.folder)
    make(args.folder, FIXED | dict(random_cases(args.seed, args.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
