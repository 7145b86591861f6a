"""Architectures of Hugging Face that the decoder computes: `config.json` to `[model]` and back, and their tensors.

Sources: `configuration_*.py` and `modeling_*.py` of transformers 5.24, and its `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from aifx.models.decoder.maxtext import maxtext_tensors
from aifx.models.decoder.section import DecoderSection, attention_biases, head_dim, num_kv_heads, window_of
from aifx.models.hub import Architecture, HubConfig, Tensor

Values = dict[str, Any]

T = TypeVar("T")

MOST_LAYERS = 10_000
"""Ten times as many as any model has: what is made for each layer stays small."""

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def _read_llama_like(config: HubConfig, *, theta: float = 10_000.0) -> Values:
    """Read the keys that Llama and its descendants share. `theta`: base of rotary positions if the file has none."""
    config.expect("hidden_act", "silu")
    found = {"activation": "swiglu", **_read_shapes(config, tied=False)}
    return found | _read_rotary(config, found["max_seq_len"], theta)


def _num_layers(config: HubConfig) -> int:
    count: int = config.read("num_hidden_layers", int)
    if not 0 < count <= MOST_LAYERS:
        raise config.refused("num_hidden_layers", f"it is from 1 to {MOST_LAYERS:,}")
    return count


def _read_shapes(config: HubConfig, *, tied: bool) -> Values:
    num_heads = config.read("num_attention_heads", int)
    return {
        "norm": "rms_norm",
        "positions": "rotary",
        "vocab_size": config.read("vocab_size", int),
        "num_layers": _num_layers(config),
        "embed_dim": config.read("hidden_size", int),
        "num_heads": num_heads,
        "num_kv_heads": config.read("num_key_value_heads", int, num_heads),
        "head_dim": config.read("head_dim", int, optional=True),
        "mlp_dim": config.read("intermediate_size", int),
        "norm_epsilon": config.read("rms_norm_eps", float),
        "max_seq_len": config.read("max_position_embeddings", int),
        "tie_embeddings": config.read("tie_word_embeddings", bool, tied),
    }


def _write_llama_like(section: DecoderSection) -> Values:
    return {
        "hidden_act": "silu",
        "vocab_size": section.vocab_size,
        "num_hidden_layers": section.num_layers,
        "hidden_size": section.embed_dim,
        "num_attention_heads": section.num_heads,
        "num_key_value_heads": num_kv_heads(section),
        "head_dim": head_dim(section),
        "intermediate_size": section.mlp_dim or 4 * section.embed_dim,
        "rms_norm_eps": section.norm_epsilon,
        "max_position_embeddings": section.max_seq_len,
        "tie_word_embeddings": section.tie_embeddings,
        **_write_rotary(section),
    }


def _read_rotary(config: HubConfig, max_seq_len: int, theta: float) -> Values:
    """Both spellings: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    outer = {
        "rope_theta": config.read("rope_theta", float, theta),
        "partial_rotary_factor": config.read("partial_rotary_factor", float, 1.0),
    }
    new, old = config.inner("rope_parameters"), config.inner("rope_scaling")
    rope = old or new or HubConfig({}, config.place, config.hint)
    return _read_frequencies(rope, outer["rope_theta"], outer["partial_rotary_factor"], max_seq_len)


def _read_frequencies(rope: HubConfig, theta: float, fraction: float, max_seq_len: int) -> Values:
    kind = rope.read("rope_type", str, rope.read("type", str, "default"))
    found = {
        "rope_theta": rope.read("rope_theta", float, theta),
        "rope_fraction": rope.read("partial_rotary_factor", float, fraction),
    }
    if kind != "default":
        if kind not in ("linear", "llama3", "yarn"):
            key = "rope_type" if "rope_type" in rope.values else "type"
            raise rope.refused(key, "aifx has linear, llama3 and yarn")
        found |= {"rope_scaling": kind, "rope_factor": rope.read("factor", float)}
    if kind in ("llama3", "yarn"):
        found["rope_original_len"] = rope.read("original_max_position_embeddings", int, max_seq_len)
    if kind == "llama3":
        found["rope_low_freq_factor"] = rope.read("low_freq_factor", float)
        found["rope_high_freq_factor"] = rope.read("high_freq_factor", float)
    if kind == "yarn":
        found["rope_beta_fast"] = rope.read("beta_fast", float, 32.0)
        found["rope_beta_slow"] = rope.read("beta_slow", float, 1.0)
        found["rope_attention_factor"] = _yarn_factor(rope, found["rope_factor"])
        rope.expect("truncate", True)
        rope.pass_over("finetuned")
    rope.finish()
    return found


def _yarn_factor(rope: HubConfig, factor: float) -> float | None:
    given = rope.read("attention_factor", float, optional=True)
    scales = [rope.read(key, float, optional=True) for key in ("mscale", "mscale_all_dim")]
    if given is not None or not all(scales) or factor <= 1:
        return given  # type: ignore[no-any-return]
    one, other = (0.1 * scale * math.log(factor) + 1.0 for scale in scales)
    return float(one / other)


def _write_rotary(section: DecoderSection) -> Values:
    kind = section.rope_scaling
    scaling: Values | None = None
    if kind != "none":
        scaling = {"rope_type": kind, "factor": section.rope_factor}
    if scaling is not None and kind != "linear":
        scaling["original_max_position_embeddings"] = section.rope_original_len
    if scaling is not None and kind == "llama3":
        scaling |= {"low_freq_factor": section.rope_low_freq_factor, "high_freq_factor": section.rope_high_freq_factor}
    if scaling is not None and kind == "yarn":
        scaling |= {"beta_fast": section.rope_beta_fast, "beta_slow": section.rope_beta_slow}
        if section.rope_attention_factor is not None:
            scaling["attention_factor"] = section.rope_attention_factor
    partial_factor = {"partial_rotary_factor": section.rope_fraction} if section.rope_fraction != 1.0 else {}
    return {"rope_theta": section.rope_theta, "rope_scaling": scaling, **partial_factor}


def read_llama(config: HubConfig) -> Values:
    config.expect("mlp_bias", False)
    return _read_llama_like(config) | _read_attention_bias(config)


def _read_attention_bias(config: HubConfig) -> Values:
    return {"attention_bias": "all" if config.read("attention_bias", bool, False) else "none"}


def write_llama(section: DecoderSection) -> Values:
    return {**_write_llama_like(section), "attention_bias": section.attention_bias == "all", "mlp_bias": False}


def read_mistral(config: HubConfig) -> Values:
    return _read_llama_like(config) | _read_one_window(config, 4096)


def _read_one_window(config: HubConfig, default: int | None) -> Values:
    window = config.read_or_null("sliding_window", int, default)
    return {"windows": (window,) if window else ()}


def write_mistral(section: DecoderSection) -> Values:
    return {**_write_llama_like(section), "sliding_window": window_of(section, 0)}


def read_qwen2(config: HubConfig) -> Values:
    return _read_llama_like(config) | {"attention_bias": "qkv"} | _read_layer_types(config)


def read_qwen3(config: HubConfig) -> Values:
    found = _read_llama_like(config) | {"qk_norm": True} | _read_attention_bias(config) | _read_layer_types(config)
    return found | {"head_dim": found["head_dim"] or 128}


def _read_layer_types(config: HubConfig) -> Values:
    """Windows of some layers: by `layer_types`, otherwise from layer `max_window_layers` on."""
    count = _num_layers(config)
    has_windows = config.read("use_sliding_window", bool, False)
    window = config.read_or_null("sliding_window", int, 4096) if has_windows else None
    first = config.read("max_window_layers", int, 28)
    config.pass_over("sliding_window")
    return _windows(config, window, [i >= first for i in range(count)])


def _windows(config: HubConfig, window: int | None, has_window: list[bool]) -> Values:
    """Windows by `layer_types`, otherwise for the layers that have one."""
    count = len(has_window)
    kinds = config.read("layer_types", list, ["sliding_attention" if one else "full_attention" for one in has_window])
    if len(kinds) != count or set(kinds) - {"sliding_attention", "full_attention"}:
        raise config.refused("layer_types", f"it names sliding_attention or full_attention for each of {count} layers")
    return {"windows": _shortest([(window or 0) if kind == "sliding_attention" else 0 for kind in kinds])}


def write_qwen(section: DecoderSection) -> Values:
    windows = [window_of(section, layer) for layer in range(section.num_layers)]
    return {
        **_write_llama_like(section),
        "use_sliding_window": any(windows),
        "sliding_window": next((window for window in windows if window), None),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        **({"attention_bias": section.attention_bias == "all"} if section.qk_norm else {}),
    }


def _shortest(values: Sequence[T]) -> tuple[T, ...]:
    """The shortest beginning that repeats to these values; nothing if all are 0."""
    if not any(values):
        return ()
    lengths = (n for n in range(1, len(values) + 1) if all(v == values[i % n] for i, v in enumerate(values)))
    return tuple(values[: next(lengths)])


def read_phi3(config: HubConfig) -> Values:
    config.pass_over("original_max_position_embeddings")  # where frequencies change with the length, which is refused
    found = _read_llama_like(config) | _read_one_window(config, None)
    if found.get("rope_scaling") == "yarn":
        raise config.refused("rope_scaling", "Phi-3 means LongRoPE by yarn, which aifx does not have")
    return found


def read_smollm3(config: HubConfig) -> Values:
    """Every fourth layer has no positions, unless `no_rope_layers` says 1 for those that have them."""
    config.expect("mlp_bias", False)
    config.expect("use_sliding_window", False)
    config.pass_over("sliding_window", "layer_types", "max_window_layers")
    count = _num_layers(config)
    interval = config.read("no_rope_layer_interval", int, 4)
    has_rope = config.read("no_rope_layers", list, [int((i + 1) % interval != 0) for i in range(count)])
    if len(has_rope) < count or set(has_rope) - {0, 1}:
        raise config.refused("no_rope_layers", f"it has 0 or 1 for each of {count} layers")
    found = _read_llama_like(config, theta=2_000_000.0) | _read_attention_bias(config)
    return found | {"rope_layers": _shortest([bool(one) for one in has_rope[:count]]) or (False,)}


def write_smollm3(section: DecoderSection) -> Values:
    layers = [int(section.rope_layers[i % len(section.rope_layers)]) for i in range(section.num_layers)]
    return {**write_llama(section), "no_rope_layers": layers, "use_sliding_window": False}


def read_olmo2(config: HubConfig) -> Values:
    norms = {"norm_placement": "after", "qk_norm": True, "qk_norm_over": "heads"}
    return _read_llama_like(config) | _read_attention_bias(config) | norms


def _read_gemma(config: HubConfig) -> Values:
    """Read the keys that Gemma 2 and 3 share."""
    config.pass_over("hidden_act")  # the class reads the other one
    config.expect("hidden_activation", "gelu_pytorch_tanh")
    config.expect("use_bidirectional_attention", False)
    found = _read_shapes(config, tied=True) | _read_attention_bias(config)
    return found | {
        "activation": "geglu_tanh",
        "head_dim": found["head_dim"] or 256,
        "norm_placement": "both",
        "norm_offset": True,
        "embedding_scale": True,
        "attention_scale": config.read("query_pre_attn_scalar", float, 256.0) ** -0.5,
    }


def read_gemma2(config: HubConfig) -> Values:
    found = _read_gemma(config)
    window = config.read_or_null("sliding_window", int, 4096)
    caps = {
        "attention_softcap": config.read_or_null("attn_logit_softcapping", float, 50.0),
        "logit_softcap": config.read_or_null("final_logit_softcapping", float, 30.0),
    }
    windows = _windows(config, window, [i % 2 == 0 for i in range(found["num_layers"])])
    return found | windows | caps | _read_rotary(config, found["max_seq_len"], 10_000.0)


def read_gemma3(config: HubConfig) -> Values:
    found = _read_gemma(config)
    window = config.read_or_null("sliding_window", int, 4096)
    pattern = config.read("sliding_window_pattern", int, config.read("_sliding_window_pattern", int, 6))
    windows = _windows(config, window, [bool((i + 1) % pattern) for i in range(found["num_layers"])])
    config.pass_over("attn_logit_softcapping")  # transformers' Gemma3Attention has the number, and no use for it
    others = {"qk_norm": True, "logit_softcap": config.read_or_null("final_logit_softcapping", float, None)}
    return found | windows | others | _read_gemma3_rotary(config, found["max_seq_len"])


def _read_gemma3_rotary(config: HubConfig, max_seq_len: int) -> Values:
    """Layers with a window have a base of their own: in `rope_parameters`, or as `rope_local_base_freq`."""
    theta, local = config.read("rope_theta", float, 1e6), config.read("rope_local_base_freq", float, 1e4)
    nested, scaling = config.inner("rope_parameters"), config.inner("rope_scaling")
    full, windowed = (nested.inner(f"{kind}_attention") if nested else None for kind in ("full", "sliding"))
    if windowed is not None:
        windowed.expect("rope_type", "default")
        local = windowed.read("rope_theta", float, local)
        windowed.finish()
    rope = scaling or full or HubConfig({}, config.place, config.hint)
    return _read_frequencies(rope, theta, 1.0, max_seq_len) | {"rope_window_theta": local}


def write_gemma(section: DecoderSection) -> Values:
    windows = [window_of(section, layer) for layer in range(section.num_layers)]
    scalar = round((section.attention_scale or head_dim(section) ** -0.5) ** -2, 6)
    written = _write_llama_like(section)
    if section.rope_window_theta is not None:
        written["rope_local_base_freq"] = section.rope_window_theta
    return {
        **{key: value for key, value in written.items() if key != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": section.attention_bias == "all",
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": next((window for window in windows if window), None),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "attn_logit_softcapping": section.attention_softcap,
        "final_logit_softcapping": section.logit_softcap,
    }


def read_gpt2(config: HubConfig) -> Values:
    config.expect("scale_attn_weights", True)
    config.expect("scale_attn_by_inverse_layer_idx", False)
    config.expect("add_cross_attention", False)
    config.pass_over("reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj", "summary_activation")
    config.pass_over("summary_proj_to_labels", "summary_first_dropout")
    activation = config.read("activation_function", str, "gelu_new")
    if activation not in _ACTIVATIONS:
        raise config.refused("activation_function", f"aifx has {', '.join(_ACTIVATIONS)}")
    return {
        "norm": "layer_norm",
        "positions": "learned",
        "activation": _ACTIVATIONS[activation],
        "bias": True,
        "vocab_size": config.read("vocab_size", int),
        "num_layers": config.read("n_layer", int),
        "embed_dim": config.read("n_embd", int),
        "num_heads": config.read("n_head", int),
        "mlp_dim": config.read("n_inner", int, optional=True),
        "norm_epsilon": config.read("layer_norm_epsilon", float),
        "max_seq_len": config.read("n_positions", int),
        "tie_embeddings": config.read("tie_word_embeddings", bool, True),
    }


def write_gpt2(section: DecoderSection) -> Values:
    return {
        "activation_function": "gelu" if section.activation == "gelu" else "gelu_new",
        "vocab_size": section.vocab_size,
        "n_layer": section.num_layers,
        "n_embd": section.embed_dim,
        "n_head": section.num_heads,
        "n_inner": section.mlp_dim,
        "layer_norm_epsilon": section.norm_epsilon,
        "n_positions": section.max_seq_len,
        "tie_word_embeddings": section.tie_embeddings,
    }


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
    _llama_like("LlamaForCausalLM", "llama", read_llama, write_llama, maxtext=maxtext_tensors),
    _llama_like("MistralForCausalLM", "mistral", read_mistral, write_mistral),
    _llama_like("Qwen2ForCausalLM", "qwen2", read_qwen2, write_qwen),
    _llama_like("Qwen3ForCausalLM", "qwen3", read_qwen3, write_qwen),
    _llama_like(
        "Phi3ForCausalLM",
        "phi3",
        read_phi3,
        write_mistral,
        tensors=partial(_llama_tensors, packed=True),
    ),
    _llama_like("Olmo2ForCausalLM", "olmo2", read_olmo2, write_llama),
    _llama_like("Gemma2ForCausalLM", "gemma2", read_gemma2, write_gemma),
    _llama_like("Gemma3ForCausalLM", "gemma3_text", read_gemma3, write_gemma),
    _llama_like("SmolLM3ForCausalLM", "smollm3", read_smollm3, write_smollm3),
    Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        read_gpt2,
        write_gpt2,
        _gpt2_tensors,
        prefix="transformer.",
        buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
        embedding_key="transformer.wte.weight",
    ),
)
