"""BERT (Devlin et al. 2018, arXiv 1810.04805): a transformer whose tokens all see each other, norms after each sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from aifx.data.spec import DataSpec
from aifx.models.bert.section import BertSection
from aifx.nn import initializers, layers
from aifx.specs import LAYERS, ArraySpec, Params, Specs
from jax_kernels._ops.attention import attention
from jax_kernels._ops.norms import layer_norm

INIT_STDDEV = 0.02


class Bert:
    """An encoder of tokens `[rows, seq]`, which returns a vector for each."""

    def __init__(self, section: BertSection) -> None:
        self.section = section

    def specs(self) -> Specs:
        """Arrays by name: `embedding/token`, `position`, `segment`, `norm`, `layers/<i>/attention/query`, ..."""
        section, init = self.section, initializers.normal(INIT_STDDEV)
        tables = {"token": section.vocab_size, "position": section.max_seq_len, "segment": section.num_segments}
        d = section.embed_dim
        embedding: Specs = {
            name: ArraySpec((size, d), (None, "embed"), init, decay=True) for name, size in tables.items()
        }
        return {
            "embedding": {**embedding, "norm": _norm_specs(d)},
            LAYERS: {str(i): _layer_specs(section) for i in range(section.num_layers)},
        }

    def encode(self, params: Params, inputs: jax.Array, is_token: jax.Array) -> jax.Array:
        """The last layer `[rows, seq, embed]` of `inputs` `[rows, seq]`.

        Args:
            is_token: bool `[rows, seq]`; others are padding, which no token sees.
        """
        table = params["embedding"]
        rows, seq = inputs.shape
        x = table["token"][inputs] + table["position"][:seq] + table["segment"][0]
        x = self._norm(table["norm"], x.reshape(rows * seq, -1))
        segments = is_token.astype(jnp.int32)
        for i in range(self.section.num_layers):
            own = params[LAYERS][str(i)]
            x = self._norm(own["attention_norm"], x + self._attention(own["attention"], x, segments))
            x = self._norm(own["mlp_norm"], x + self._mlp(own["mlp"], x))
        return x.reshape(rows, seq, -1)

    def _attention(self, params: Params, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Attention of x `[rows x seq, embed]` within the segments `[rows, seq]`."""
        heads = (*segments.shape, self.section.num_heads, -1)

        def project(name: str) -> jax.Array:
            return layers.linear(x, params[name], params[f"{name}_bias"]).reshape(heads)

        out = attention(project("query"), project("key"), project("value"), segment_ids=segments)
        return layers.linear(out.reshape(x.shape), params["output"], params["output_bias"])

    def _mlp(self, params: Params, x: jax.Array) -> jax.Array:
        hidden = layers.gelu(layers.linear(x, params["up"], params["up_bias"]))
        return layers.linear(hidden, params["down"], params["down_bias"])

    def _norm(self, params: Params, x: jax.Array) -> jax.Array:
        return layer_norm(x, params["scale"], params["bias"], epsilon=self.section.norm_epsilon)


def make(section: BertSection, data: DataSpec) -> Bert:
    return Bert(section)


def _layer_specs(section: BertSection) -> Specs:
    d, hidden = section.embed_dim, section.mlp_dim
    return {
        "attention": {
            name: value
            for part in ("query", "key", "value", "output")
            for name, value in _linear_specs(part, d, d).items()
        },
        "attention_norm": _norm_specs(d),
        "mlp": {**_linear_specs("up", d, hidden), **_linear_specs("down", hidden, d)},
        "mlp_norm": _norm_specs(d),
    }


def _linear_specs(name: str, inputs: int, outputs: int) -> Specs:
    init = initializers.normal(INIT_STDDEV)
    return {
        name: ArraySpec((inputs, outputs), (None, None), init, matrix=((0,), (1,)), decay=True),
        f"{name}_bias": ArraySpec((outputs,), (None,), initializers.zeros),
    }


def _norm_specs(width: int) -> Specs:
    return {
        "scale": ArraySpec((width,), ("embed",), initializers.ones),
        "bias": ArraySpec((width,), ("embed",), initializers.zeros),
    }
