"""The sizes of BERT."""

from __future__ import annotations

from pydantic import Field

from aifx.config.sections import ModelSection, PositiveFloat, PositiveInt


class BertSection(ModelSection):
    """An encoder of texts."""

    vocab_size: PositiveInt = Field(30522, description="Tokens that it knows.")
    max_seq_len: PositiveInt = Field(512, description="Positions that it knows.")
    num_segments: PositiveInt = Field(2, description="Kinds of segments that it knows; a single text is the first.")
    num_layers: PositiveInt = Field(12, description="Transformer blocks.")
    embed_dim: PositiveInt = Field(768, description="Width of the residual stream.")
    num_heads: PositiveInt = Field(12, description="Attention heads.")
    mlp_dim: PositiveInt = Field(3072, description="Hidden width of the MLP.")
    norm_epsilon: PositiveFloat = Field(1e-12, description="Added to the variance.")
