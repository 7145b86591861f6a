"""`[model]` of decoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aifx.config.sections import ROUNDING, Conflict, Fraction, ModelSection, PositiveFloat, PositiveInt, Remat, setting

if TYPE_CHECKING:
    from aifx.config.config import Config


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
    norm_epsilon: PositiveFloat = Field(1e-5, description="Added to the variance.")
    qk_norm: bool = Field(False, description="RMS norm of each head's queries and keys, before rotary positions.")
    positions: Literal["learned", "rotary"] = Field(
        "rotary", description="learned: a table of max_seq_len rows. rotary: RoPE."
    )
    max_seq_len: PositiveInt | None = Field(None, description="Longest context; data.seq_len when not set.")
    rope_theta: PositiveFloat = Field(10_000.0, description="Base of the rotary frequencies.")
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = Field(
        "swiglu", description="MLP activation; swiglu has a gate."
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

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        head_dim = self.head_dim or self.embed_dim // self.num_heads
        if self.head_dim is None and self.embed_dim % self.num_heads:
            yield Conflict(
                ("model.num_heads", "model.embed_dim"),
                f"model.embed_dim = {self.embed_dim} does not divide by model.num_heads = {self.num_heads}",
                "head_dim is their quotient if it is not set",
            )
        elif self.positions == "rotary" and head_dim % 2:
            yield Conflict(
                ("model.head_dim", "model.num_heads", "model.embed_dim", "model.positions"),
                f'model.positions = "rotary" needs an even head_dim, and it is {head_dim}',
                "rotary positions turn pairs of features",
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
