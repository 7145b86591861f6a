"""The products of a step of generation on a CPU."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from aifx.config.sections import Quantization
from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.nn.quantized import quantize_matrices
from aifx.parallel.layout import local_layout
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.serving import one_row
from aifx.specs import init_params

PRODUCT = re.compile(r"stablehlo\.dot_general .* : \(tensor<(\d+)x\d+x([a-z]\w+)>, tensor<\d+x\d+x[a-z]\w+>\)")
"""A product of two matrices: the rows and the type of the first."""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "quantization", "kind"), [("bfloat16", "none", "bf16"), ("float32", "int8", "i8")])
def test_one_row_is_multiplied_as_two(dtype: str, quantization: Quantization, kind: str) -> None:
    """XLA's CPU backend multiplies a single row of bfloat16 or int8 in a loop, more than ten times slower."""
    section = DecoderSection(num_layers=1, embed_dim=32, num_heads=2, mlp_dim=48)
    model = Decoder(section, vocab_size=96, seq_len=16)
    programs = DecodingPrograms(model, model.specs(), local_layout(1), jnp.dtype(dtype))
    drawn = jax.tree.map(lambda x: x.astype(dtype), init_params(model.specs(), jax.random.key(0)))
    params = programs.prepare(quantize_matrices(drawn, model.specs(), quantization))
    text = one_row(programs, params, 16).decode(1).lower().as_text()
    # Queries with keys and values, the output, up with gate, down, and the scores of all tokens.
    assert PRODUCT.findall(text) == [("2", kind)] * 5
