"""Architectures of Hugging Face that the decoder computes, and their tensors.

Source: `modeling_*.py` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from aifx.models.decoder import hub_configs as configs
from aifx.models.decoder.maxtext import maxtext_tensors
from aifx.models.decoder.section import DecoderSection, attention_biases
from aifx.models.hub import Architecture, Tensor

Values = dict[str, Any]

_NORMS = {
    "before": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    "after": {"post_attention_layernorm": "attention_out_norm", "post_feedforward_layernorm": "mlp_out_norm"},
    "both": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_out_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
}


def _llama_tensors(section: DecoderSection, *, packed: bool = False) -> Iterator[Tensor]:
    """`packed`: queries, keys and values are one tensor, and so are gate and up; it has no biases."""
    yield Tensor("model.embed_tokens.weight", ("embedding/token",))
    has_qkv_bias, has_output_bias = attention_biases(section)
    for i in range(section.num_layers):
        file, ours = f"model.layers.{i}", f"layers/{i}"
        for key, name in _NORMS[section.norm_placement].items():
            yield Tensor(f"{file}.{key}.weight", (f"{ours}/{name}/scale",))
        if packed:
            queries = tuple(f"{ours}/attention/{name}" for name in ("query", "key", "value"))
            yield Tensor(f"{file}.self_attn.qkv_proj.weight", queries, True)
            yield Tensor(f"{file}.mlp.gate_up_proj.weight", (f"{ours}/mlp/gate", f"{ours}/mlp/up"), True)
        for letter, name in () if packed else (("q", "query"), ("k", "key"), ("v", "value")):
            yield Tensor(f"{file}.self_attn.{letter}_proj.weight", (f"{ours}/attention/{name}",), True)
            if has_qkv_bias:
                yield Tensor(f"{file}.self_attn.{letter}_proj.bias", (f"{ours}/attention/{name}_bias",))
        yield Tensor(f"{file}.self_attn.o_proj.weight", (f"{ours}/attention/output",), True)
        if has_output_bias:
            yield Tensor(f"{file}.self_attn.o_proj.bias", (f"{ours}/attention/output_bias",))
        if section.qk_norm:
            yield Tensor(f"{file}.self_attn.q_norm.weight", (f"{ours}/attention/query_norm",))
            yield Tensor(f"{file}.self_attn.k_norm.weight", (f"{ours}/attention/key_norm",))
        for name in ("down",) if packed else ("gate", "up", "down"):
            yield Tensor(f"{file}.mlp.{name}_proj.weight", (f"{ours}/mlp/{name}",), True)
    yield Tensor("model.norm.weight", ("final_norm/scale",))
    if not section.tie_embeddings:
        yield Tensor("lm_head.weight", ("output",), True)


def _gpt2_tensors(section: DecoderSection) -> Iterator[Tensor]:
    """Its products are `[inputs, outputs]`, as ours are."""
    yield Tensor("transformer.wte.weight", ("embedding/token",))
    yield Tensor("transformer.wpe.weight", ("embedding/position",))

    def norm(file: str, ours: str) -> Iterator[Tensor]:
        yield Tensor(f"{file}.weight", (f"{ours}/scale",))
        yield Tensor(f"{file}.bias", (f"{ours}/bias",))

    for i in range(section.num_layers):
        file, ours = f"transformer.h.{i}", f"layers/{i}"
        yield from norm(f"{file}.ln_1", f"{ours}/attention_norm")
        yield from norm(f"{file}.ln_2", f"{ours}/mlp_norm")
        products = {
            "attn.c_attn": [f"attention/{name}" for name in ("query", "key", "value")],
            "attn.c_proj": ["attention/output"],
            "mlp.c_fc": ["mlp/up"],
            "mlp.c_proj": ["mlp/down"],
        }
        for key, names in products.items():
            yield Tensor(f"{file}.{key}.weight", tuple(f"{ours}/{name}" for name in names))
            yield Tensor(f"{file}.{key}.bias", tuple(f"{ours}/{name}_bias" for name in names))
    yield from norm("transformer.ln_f", "final_norm")
    if not section.tie_embeddings:
        yield Tensor("lm_head.weight", ("output",), True)


_llama_like = partial(
    Architecture,
    tensors=_llama_tensors,
    prefix="model.",
    buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    embedding_key="model.embed_tokens.weight",
)

ARCHITECTURES = (
    _llama_like("LlamaForCausalLM", "llama", configs.read_llama, configs.write_llama, maxtext=maxtext_tensors),
    _llama_like("MistralForCausalLM", "mistral", configs.read_mistral, configs.write_mistral),
    _llama_like("Qwen2ForCausalLM", "qwen2", configs.read_qwen2, configs.write_qwen),
    _llama_like("Qwen3ForCausalLM", "qwen3", configs.read_qwen3, configs.write_qwen),
    _llama_like(
        "Phi3ForCausalLM",
        "phi3",
        configs.read_phi3,
        configs.write_mistral,
        tensors=partial(_llama_tensors, packed=True),
    ),
    _llama_like("Olmo2ForCausalLM", "olmo2", configs.read_olmo2, configs.write_llama),
    _llama_like("Gemma2ForCausalLM", "gemma2", configs.read_gemma2, configs.write_gemma),
    _llama_like("Gemma3ForCausalLM", "gemma3_text", configs.read_gemma3, configs.write_gemma),
    _llama_like("SmolLM3ForCausalLM", "smollm3", configs.read_smollm3, configs.write_smollm3),
    Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        configs.read_gpt2,
        configs.write_gpt2,
        _gpt2_tensors,
        prefix="transformer.",
        buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
        embedding_key="transformer.wte.weight",
    ),
)
