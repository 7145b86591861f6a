"""`[model]` of decoders, and named models (presets).

A preset puts values where the project sets none. `tiny` and `small`: rotary positions, SwiGLU of 8/3 of the width
(Shazeer 2020, arXiv 2002.05202), RMS norm also of queries and keys (Henry et al. 2020, arXiv 2010.04245), tied
embeddings, no biases.

Sources: GPT-2, openai/gpt-2 `src/model.py` and the `hparams.json` of each released size; the real vocabulary of 50,257
is kept, not padded. Llama 3, 3.1 and 3.2, the `config.json` of each released model; Llama 3.1 and 3.2 were trained to
8,192 tokens before their context was stretched, and that is the context given here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from aifx.config import Config
from aifx.config.sections import (
    ROUNDING,
    Conflict,
    Fraction,
    ModelSection,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Remat,
    setting,
)

_SCALING_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("rope_factor",),
    "llama3": ("rope_factor", "rope_original_len", "rope_low_freq_factor", "rope_high_freq_factor"),
    "yarn": ("rope_factor", "rope_original_len", "rope_beta_slow", "rope_beta_fast", "rope_attention_factor"),
}
"""The keys that each `rope_scaling` reads."""


class DecoderSection(ModelSection):
    """A decoder-only transformer: GPT-2, Llama and models between them."""

    vocab_size: PositiveInt | None = Field(None, description="Rows of the embedding; data.vocab_size if not set.")
    num_layers: PositiveInt = Field(4, description="Transformer blocks.")
    embed_dim: PositiveInt = Field(128, description="Width of the residual stream.")
    num_heads: PositiveInt = Field(4, description="Query heads.")
    num_kv_heads: PositiveInt | None = Field(
        None, description="Key and value heads; fewer than num_heads is grouped-query attention."
    )
    head_dim: PositiveInt | None = Field(None, description="Width of a head; embed_dim / num_heads when not set.")
    mlp_dim: PositiveInt | None = Field(None, description="Hidden width of the MLP; 4 x embed_dim when not set.")
    norm: Literal["layer_norm", "rms_norm"] = Field("rms_norm", description="Normalization before each block half.")
    norm_placement: Literal["before", "after", "both"] = Field(
        "before", description="Normalization before each half of a block, of what the half adds, or both."
    )
    norm_offset: bool = Field(False, description="Norms multiply by 1 + scale, as Gemma's do.")
    norm_epsilon: PositiveFloat = Field(1e-5, description="Added to the variance.")
    attention_bias: Literal["none", "qkv", "all"] = Field(
        "none",
        description="Biases in attention without those of `bias`. qkv: all but its output's.",
    )
    windows: tuple[NonNegativeInt, ...] = Field(
        (),
        description="Tokens that each layer's attention reaches back, itself included; 0 is all. Repeated over layers.",
    )
    attention_scale: PositiveFloat | None = Field(
        None, description="Factor of attention's scores; 1 / sqrt(head_dim) when not set."
    )
    attention_softcap: PositiveFloat | None = Field(
        None, description="Attention's scores are squashed to within plus or minus this by a tanh."
    )
    logit_softcap: PositiveFloat | None = Field(
        None, description="Logits are squashed to within plus or minus this by a tanh."
    )
    embedding_scale: bool = Field(False, description="Embeddings are multiplied by the root of embed_dim.")
    qk_norm: bool = Field(False, description="RMS norm of queries and keys, before rotary positions.")
    qk_norm_over: Literal["head", "heads"] = Field(
        "head", description="head: qk_norm is over each head. heads: over all heads together."
    )
    positions: Literal["learned", "rotary"] = Field(
        "rotary", description="learned: a table of max_seq_len rows. rotary: RoPE."
    )
    max_seq_len: PositiveInt | None = Field(None, description="Longest context; data.seq_len when not set.")
    rope_theta: PositiveFloat = Field(10_000.0, description="Base of the rotary frequencies.")
    rope_window_theta: PositiveFloat | None = Field(
        None,
        description="Base of the rotary frequencies, unscaled, of layers with a window; if not set, as in others.",
    )
    rope_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of a head's features that rotary positions turn."
    )
    rope_layers: Annotated[tuple[bool, ...], Field(min_length=1)] = Field(
        (True,), description="Whether each layer has rotary positions. Repeated over layers."
    )
    rope_scaling: Literal["none", "linear", "llama3", "yarn"] = Field(
        "none", description="How rotary positions reach beyond the first context."
    )
    rope_factor: PositiveFloat = Field(1.0, description="How far: what rope_scaling divides frequencies by.")
    rope_original_len: PositiveInt | None = Field(None, description="Tokens of the first context (llama3, yarn).")
    rope_low_freq_factor: PositiveFloat = Field(
        1.0, description="llama3: turns in the first context up to which a frequency is divided."
    )
    rope_high_freq_factor: PositiveFloat = Field(
        4.0, description="llama3: turns in the first context from which a frequency is kept."
    )
    rope_beta_slow: PositiveFloat = Field(1.0, description="yarn: as rope_low_freq_factor.")
    rope_beta_fast: PositiveFloat = Field(32.0, description="yarn: as rope_high_freq_factor.")
    rope_attention_factor: PositiveFloat | None = Field(
        None, description="yarn: factor of cosines and sines; 0.1 ln(rope_factor) + 1 if not set."
    )
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu_tanh"] = Field(
        "swiglu", description="MLP activation; swiglu and geglu_tanh have a gate."
    )
    bias: bool = Field(False, description="Biases in projections and norms.")
    tie_embeddings: bool = Field(True, description="The output projection is the embedding's transpose.")
    dropout: Fraction = Field(
        0.0, description="Share of the embedding, attention weights and residuals dropped in training."
    )
    scan_layers: bool = Field(
        False,
        description="Compile one layer and loop over it: compiles faster, same checkpoint.",
        json_schema_extra=ROUNDING,
    )
    remat: Remat = setting(
        "none",
        "Recompute on the way back, for less memory and more time: full is everything, dots all but matrix products.",
        ROUNDING,
    )

    def computation(self) -> dict[str, Any]:
        """As `ModelSection.computation`, with the values that apply for keys that are not set, and no unused keys."""
        values = super().computation() | {
            "head_dim": head_dim(self),
            "num_kv_heads": num_kv_heads(self),
            "mlp_dim": self.mlp_dim or 4 * self.embed_dim,
            "attention_bias": attention_biases(self),
            "windows": [window_of(self, layer) for layer in range(self.num_layers)],
            "attention_scale": self.attention_scale or head_dim(self) ** -0.5,
        }
        is_rotary = self.positions == "rotary"
        layers = [is_rotary and self.rope_layers[i % len(self.rope_layers)] for i in range(self.num_layers)]
        unused = {key for key in values if key.startswith("rope_")} - self._rotary_keys()
        if not self.qk_norm:
            unused.add("qk_norm_over")
        return {key: value for key, value in values.items() if key not in unused} | {"rope_layers": layers}

    def _rotary_keys(self) -> set[str]:
        """The keys that all rotary positions of the model read."""
        if self.positions != "rotary":
            return set()
        of_windows = ["rope_window_theta"] if any(self.windows) else []
        return {"rope_theta", "rope_fraction", "rope_scaling", *_SCALING_KEYS[self.rope_scaling], *of_windows}

    def _conflicts_of_scaling(self) -> Iterator[Conflict]:
        if self.rope_scaling in ("llama3", "yarn") and self.rope_original_len is None:
            yield Conflict(
                ("model.rope_scaling", "model.rope_original_len"),
                f'model.rope_scaling = "{self.rope_scaling}" needs model.rope_original_len',
                "it divides frequencies by their turns in the first context",
            )
        if self.rope_scaling == "yarn" and self.rope_theta <= 1.0:
            yield Conflict(
                ("model.rope_theta", "model.rope_scaling"),
                f'model.rope_theta = {self.rope_theta}, and model.rope_scaling = "yarn" needs more than 1',
                "it finds the frequencies to divide by their logarithm to this base",
            )
        if self.rope_scaling == "llama3" and self.rope_low_freq_factor >= self.rope_high_freq_factor:
            yield Conflict(
                ("model.rope_low_freq_factor", "model.rope_high_freq_factor"),
                f"model.rope_low_freq_factor = {self.rope_low_freq_factor} is not less than "
                f"model.rope_high_freq_factor = {self.rope_high_freq_factor}",
                "frequencies between the two are blended",
            )

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        head_dim = self.head_dim or self.embed_dim // self.num_heads
        if self.head_dim is None and self.embed_dim % self.num_heads:
            yield Conflict(
                ("model.num_heads", "model.embed_dim"),
                f"model.embed_dim = {self.embed_dim} does not divide by model.num_heads = {self.num_heads}",
                "head_dim is their quotient if it is not set",
            )
        elif self.positions == "rotary" and ((turned := int(head_dim * self.rope_fraction)) % 2 or not turned):
            yield Conflict(
                ("model.head_dim", "model.num_heads", "model.embed_dim", "model.rope_fraction", "model.positions"),
                f'model.positions = "rotary" turns an even number of a head\'s features, and it is {turned}',
                "rotary positions turn pairs of features",
            )
        yield from self._conflicts_of_scaling()
        differ = [key for key in ("windows", "rope_layers") if len(set(getattr(self, key))) > 1]
        if self.scan_layers and differ:
            yield Conflict(
                ("model.scan_layers", f"model.{differ[0]}"),
                f"model.scan_layers = true, and model.{differ[0]} makes layers differ",
                "one compiled layer serves for all",
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            yield Conflict(
                ("model.num_kv_heads", "model.num_heads"),
                f"model.num_heads = {self.num_heads} does not divide by model.num_kv_heads = {self.num_kv_heads}",
                "each key and value head serves the same number of query heads",
            )
        seq_len = getattr(config.data, "seq_len", None)
        if self.max_seq_len is not None and seq_len is not None and self.max_seq_len < seq_len:
            yield Conflict(
                ("data.seq_len", "model.max_seq_len"),
                f"data.seq_len = {seq_len} is more than model.max_seq_len = {self.max_seq_len}",
                "the model has no positions for so long a sequence",
            )


# With fewer heads of keys and values than of queries, consecutive query heads share one (grouped-query attention,
# Ainslie et al. 2023, arXiv 2305.13245): the cache of a text shrinks by their ratio. The ops of jax_kernels take q, k
# and v with their own numbers of heads, so that kernels need not repeat keys and values in memory.
def num_kv_heads(section: DecoderSection) -> int:
    return section.num_kv_heads or section.num_heads


def head_dim(section: DecoderSection) -> int:
    return section.head_dim or section.embed_dim // section.num_heads


def attention_biases(section: DecoderSection) -> tuple[bool, bool]:
    """Whether queries, keys and values have biases, and whether attention's output has one."""
    return section.bias or section.attention_bias != "none", section.bias or section.attention_bias == "all"


def window_of(section: DecoderSection, layer: int) -> int | None:
    """The tokens that the attention of a layer, counted from 0, reaches back; None if it reaches all."""
    return section.windows[layer % len(section.windows)] or None if section.windows else None


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
