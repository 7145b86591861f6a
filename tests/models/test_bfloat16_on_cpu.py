"""Programs that XLA compiles for a CPU in bfloat16: products that the processor's matrix units take, if it has them.

They take row-major operands only. XLA widens others to float32, or multiplies them without those units. A machine
without such units does not show the difference in its times, so these tests read the compiled programs.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import CONTEXT

from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.specs import init_params
from jax_kernels._ops.linear_cross_entropy import linear_cross_entropy
from jax_kernels._ops.quantized_matmul import quantize, quantized_linear

BATCH, SEQ, VOCAB = 2, 128, 96
DOT = re.compile(r" = (\S+) dot\(%?([\w.\-]+), %?([\w.\-]+)\), (.*)")
NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\S+) ")

GPT2 = {"norm": "layer_norm", "positions": "learned", "activation": "gelu_tanh", "bias": True}
LLAMA = {"activation": "swiglu", "num_kv_heads": 2, "tie_embeddings": False}


def slow_products(text):
    """Products of a compiled program whose operands are not row-major matrices of bfloat16, and the number of all."""
    kinds = dict(match.groups() for line in text.splitlines() if (match := NAMED.match(line)))
    found = []
    for line in text.splitlines():
        if not (match := DOT.search(line)):
            continue
        _, lhs, rhs, dimensions = match.groups()
        lhs, rhs = kinds[lhs], kinds[rhs]
        rank = lhs.count(",", 0, lhs.index("]")) + 1
        straight = f"lhs_contracting_dims={{{rank - 1}}}" in dimensions
        straight &= f"rhs_contracting_dims={{{rank - 2}}}" in dimensions
        row_major = "{" + ",".join(str(axis) for axis in reversed(range(rank))) + "}"
        straight &= lhs.endswith(row_major) and rhs.endswith(row_major)
        is_vector = ",1]" in rhs  # the mean of a norm, in float32
        if not (is_vector or (straight and lhs.startswith("bf16") and rhs.startswith("bf16"))):
            found.append(line.strip())
    return found, len(DOT.findall(text))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "packed"),
    [(GPT2, False), (LLAMA, True), (LLAMA | {"scan_layers": True, "remat": "full"}, False)],
    ids=["gpt2", "llama, packed", "llama, scanned"],
)
def test_training(section, packed):
    given = DecoderSection(num_layers=1, num_heads=4, embed_dim=64, **section)
    model = Decoder(given, vocab_size=VOCAB, seq_len=SEQ)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(model.specs(), jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((BATCH, SEQ), jnp.int32)

    def loss(params, tokens):
        batch = {"inputs": tokens} | ({"segment_ids": tokens // 50} if packed else {})
        weight = model.head(params, CONTEXT).weight
        return linear_cross_entropy(model.hidden(params, batch, CONTEXT), weight, tokens.reshape(-1), reduction="sum")

    text = jax.jit(jax.grad(loss)).lower(params, tokens).compile().as_text()
    found, count = slow_products(text)
    assert count > 20
    assert found == []


def test_products_of_int8_are_row_major_too():
    x, weight = jnp.ones((32, 64), jnp.bfloat16), jnp.ones((64, 96), jnp.bfloat16)
    quantized = quantize(weight, "int8", (None, 1))
    text = jax.jit(quantized_linear).lower(x, *quantized).compile().as_text()
    (line,) = [line for line in text.splitlines() if " dot(" in line]
    assert "lhs_contracting_dims={1}, rhs_contracting_dims={0}" in line
    assert re.search(r"s8\[32,64\]\{1,0\}", text)
    assert re.search(r"s8\[64,96\]\{1,0\}", text)
    assert np.isfinite(jax.jit(quantized_linear)(x, *quantized)).all()
