"""The decoder-only transformer: GPT-2, Llama and what lies between, by configuration alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from aifx.config.sections import LanguageModelSection
from aifx.nn import initializers, layers
from aifx.nn.specs import LAYERS, ArraySpec, Initializer, Params, Specs, count_parameters, stack_layer_specs
from jax_kernels.attention import attention

Cache: TypeAlias = dict[str, Any]
"""Keys and values of the tokens so far, by layer, and `position`, the number of them."""

Angles: TypeAlias = tuple[jax.Array, jax.Array]

INIT_STDDEV = 0.02  # GPT-2, openai/gpt-2 `src/model.py`


class Outputs(NamedTuple):
    """What a forward pass gives: logits `[batch, seq, vocab]`, float32, and the cache when one was given."""

    logits: jax.Array
    cache: Cache | None


class Decoder:
    """A decoder over `vocab_size` tokens and up to `max_seq_len` positions.

    section: its dimensions, which fit one another (`config.checks` sees to that).
    """

    def __init__(self, section: LanguageModelSection, *, vocab_size: int, max_seq_len: int) -> None:
        self.section = section
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.num_kv_heads = section.num_kv_heads or section.num_heads
        self.head_dim = section.head_dim or section.embed_dim // section.num_heads
        self.mlp_dim = section.mlp_dim or 4 * section.embed_dim

    def specs(self) -> Specs:
        """Arrays by name: each layer's under `layers/<i>`, or one stacked set for all with `scan_layers`."""
        c = self.section
        table = initializers.normal(INIT_STDDEV)
        specs: Specs = {
            "embedding": {"token": ArraySpec((self.vocab_size, c.embed_dim), ("vocab", "embed"), table, decay=True)}
        }
        if c.positions == "learned":
            specs["embedding"]["position"] = ArraySpec(
                (self.max_seq_len, c.embed_dim), (None, "embed"), table, decay=True
            )
        layer = {
            "attention_norm": self._norm_specs(),
            "attention": self._attention_specs(),
            "mlp_norm": self._norm_specs(),
            "mlp": self._mlp_specs(),
        }
        if c.scan_layers:
            specs[LAYERS] = stack_layer_specs(layer, c.num_layers)
        else:
            specs[LAYERS] = {str(i): layer for i in range(c.num_layers)}
        specs["final_norm"] = self._norm_specs()
        if not c.tie_embeddings:
            specs["output"] = ArraySpec((c.embed_dim, self.vocab_size), ("embed", "vocab"), table, decay=True)
        return specs

    def _norm_specs(self) -> Specs:
        shape, axes = (self.section.embed_dim,), ("embed",)
        scale = {"scale": ArraySpec(shape, axes, initializers.ones)}
        return {**scale, "bias": ArraySpec(shape, axes, initializers.zeros)} if self.section.bias else scale

    def _attention_specs(self) -> Specs:
        d, h, kv, width = self.section.embed_dim, self.section.num_heads, self.num_kv_heads, self.head_dim
        inner = initializers.normal(INIT_STDDEV)

        def projection(heads: int, axis: str) -> ArraySpec:
            return ArraySpec((d, heads, width), ("embed", axis, "head_dim"), inner, matrix=((0,), (1, 2)), decay=True)

        specs: Specs = {
            "query": projection(h, "heads"),
            "key": projection(kv, "kv_heads"),
            "value": projection(kv, "kv_heads"),
            "output": ArraySpec(
                (h, width, d), ("heads", "head_dim", "embed"), self._residual_init(), matrix=((0, 1), (2,)), decay=True
            ),
        }
        if self.section.bias:
            specs["query_bias"] = ArraySpec((h, width), ("heads", "head_dim"), initializers.zeros)
            specs["key_bias"] = ArraySpec((kv, width), ("kv_heads", "head_dim"), initializers.zeros)
            specs["value_bias"] = ArraySpec((kv, width), ("kv_heads", "head_dim"), initializers.zeros)
            specs["output_bias"] = ArraySpec((d,), ("embed",), initializers.zeros)
        return specs

    def _mlp_specs(self) -> Specs:
        d, hidden = self.section.embed_dim, self.mlp_dim
        inner = ArraySpec(
            (d, hidden), ("embed", "mlp"), initializers.normal(INIT_STDDEV), matrix=((0,), (1,)), decay=True
        )
        inner_bias = ArraySpec((hidden,), ("mlp",), initializers.zeros)
        down = ArraySpec((hidden, d), ("mlp", "embed"), self._residual_init(), matrix=((0,), (1,)), decay=True)
        specs: Specs = {"up": inner, "down": down}
        if self.section.activation == "swiglu":
            specs["gate"] = inner
        if self.section.bias:
            specs["up_bias"] = inner_bias
            specs["down_bias"] = ArraySpec((d,), ("embed",), initializers.zeros)
            if self.section.activation == "swiglu":
                specs["gate_bias"] = inner_bias
        return specs

    def _residual_init(self) -> Initializer:
        """GPT-2's: what is added to the residual stream starts smaller the more layers add to it."""
        return initializers.normal(INIT_STDDEV / math.sqrt(2 * self.section.num_layers))

    def cache_specs(self, batch: int, length: int, dtype: Any = jnp.float32) -> Specs:
        """A cache for `length` tokens of each of `batch` rows."""
        shape = (batch, length, self.num_kv_heads, self.head_dim)
        entry = ArraySpec(shape, ("batch", None, "kv_heads", "head_dim"), initializers.zeros, dtype, kind="buffer")
        layer = {"key": entry, "value": entry}
        stacked = self.section.scan_layers
        n = self.section.num_layers
        return {
            "position": ArraySpec((), (), initializers.zeros, jnp.int32, kind="buffer"),
            LAYERS: stack_layer_specs(layer, n) if stacked else {str(i): layer for i in range(n)},
        }

    def flops(self, batch_shape: tuple[int, ...]) -> int:
        """Forward and backward over `(rows, seq)`: tokens x (6 N + 12 L H Q T), PaLM appendix B (arXiv 2204.02311).

        N counts parameters that enter products: all but lookup tables (positions; the token table when it is not the
        output too). L layers, H heads of width Q, T tokens of context. A causal mask is not discounted, recomputation
        not counted.
        """
        rows, seq = batch_shape
        specs = self.specs()
        lookups = (
            specs["embedding"]
            if not self.section.tie_embeddings
            else {k: v for k, v in specs["embedding"].items() if k != "token"}
        )
        products = count_parameters(specs) - count_parameters(lookups)
        attended = self.section.num_layers * self.section.num_heads * self.head_dim * seq
        return rows * seq * (6 * products + 12 * attended)

    def __call__(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Outputs:
        """Logits of the next token at each of `inputs` `[batch, seq]` int32.

        `segment_ids` `[batch, seq]` keeps attention within each document, `positions` `[batch, seq]` counts
        anew in each.
        With a cache the inputs follow what it holds, and it comes back longer by `seq`.
        """
        hidden, cache = self.hidden(params, inputs, segment_ids=segment_ids, positions=positions, cache=cache)
        return Outputs(self.logits(params, hidden), cache)

    def hidden(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """What the output projection reads: `[batch, seq, embed]`, after the last norm; and the cache."""
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids: a cache holds one document a row, so expected None with a cache")
        batch, seq = inputs.shape
        offset = 0 if cache is None else cache["position"]
        x = params["embedding"]["token"][inputs]
        angles = None
        if self.section.positions == "learned":
            x = x + self._position_rows(params["embedding"]["position"], seq, positions, offset)
        else:
            where = jnp.arange(seq)[None] + offset if positions is None else positions
            angles = layers.rotary_angles(where, self.head_dim, self.section.rope_theta)
        x, layer_caches = self._blocks(
            params[LAYERS], x.reshape(batch * seq, -1), (batch, seq), segment_ids, angles, cache
        )
        x = self._norm(params["final_norm"], x).reshape(batch, seq, -1)
        return x, None if cache is None else {"position": offset + seq, LAYERS: layer_caches}

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Scores `[..., vocab]`, float32 or wider, of `hidden` `[..., embed]`."""
        weight = params["embedding"]["token"].T if self.section.tie_embeddings else params["output"]
        scores = layers.linear_at_least_float32(hidden.reshape(-1, hidden.shape[-1]), weight)
        return scores.reshape(*hidden.shape[:-1], self.vocab_size)

    def _position_rows(self, table: jax.Array, seq: int, positions: jax.Array | None, offset: Any) -> jax.Array:
        if seq > self.max_seq_len:
            raise ValueError(f"inputs: {seq} tokens, but learned positions end at {self.max_seq_len}")
        if positions is not None:
            return table[positions]
        return (
            jax.lax.dynamic_slice_in_dim(table, offset, seq)
            if not isinstance(offset, int)
            else table[offset : offset + seq]
        )

    def _blocks(
        self,
        params: Params,
        x: jax.Array,
        shape: tuple[int, int],
        segment_ids: jax.Array | None,
        angles: Angles | None,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache | None]:
        """All layers over x `[tokens, embed]`: a Python loop, or one compiled layer that is scanned over."""
        offset = None if cache is None else cache["position"]

        def block(x: jax.Array, layer: tuple[Params, Params | None]) -> tuple[jax.Array, Params | None]:
            return self._block(*layer, x, shape, segment_ids, angles, offset)

        if self.section.remat:
            block = jax.checkpoint(block)
        layer_caches = None if cache is None else cache[LAYERS]
        if self.section.scan_layers:
            return jax.lax.scan(block, x, (params, layer_caches))
        caches: Cache = {}
        for i in range(self.section.num_layers):
            name = str(i)
            x, caches[name] = block(x, (params[name], None if layer_caches is None else layer_caches[name]))
        return x, None if cache is None else caches

    def _block(
        self,
        params: Params,
        cache: Params | None,
        x: jax.Array,
        shape: tuple[int, int],
        segment_ids: jax.Array | None,
        angles: Angles | None,
        offset: jax.Array | None,
    ) -> tuple[jax.Array, Params | None]:
        mixed, cache = self._attention(
            params["attention"], cache, self._norm(params["attention_norm"], x), shape, segment_ids, angles, offset
        )
        x = x + mixed
        return x + self._mlp(params["mlp"], self._norm(params["mlp_norm"], x)), cache

    def _norm(self, params: Params, x: jax.Array) -> jax.Array:
        norm = layers.layer_norm if self.section.norm == "layer_norm" else layers.rms_norm
        return norm(x, params["scale"], params.get("bias"), self.section.norm_epsilon)

    def _attention(
        self,
        params: Params,
        cache: Params | None,
        x: jax.Array,
        shape: tuple[int, int],
        segment_ids: jax.Array | None,
        angles: Angles | None,
        offset: jax.Array | None,
    ) -> tuple[jax.Array, Params | None]:
        def heads(name: str, count: int) -> jax.Array:
            bias = params[f"{name}_bias"].reshape(-1) if self.section.bias else None
            y = layers.linear(x, params[name].reshape(x.shape[1], -1), bias)
            return y.reshape(*shape, count, self.head_dim)

        q, k, v = (
            heads("query", self.section.num_heads),
            heads("key", self.num_kv_heads),
            heads("value", self.num_kv_heads),
        )
        if angles is not None:
            q, k = layers.rotate(q, *angles), layers.rotate(k, *angles)
        if cache is not None and offset is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache["key"], k.astype(cache["key"].dtype), offset, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache["value"], v.astype(cache["value"].dtype), offset, axis=1)
            cache = {"key": k, "value": v}
        out = attention(q, k, v, causal=True, segment_ids=segment_ids, q_offset=0 if offset is None else offset)
        weight = params["output"].reshape(-1, x.shape[1])
        return layers.linear(out.reshape(x.shape[0], -1), weight, params.get("output_bias")), cache

    def _mlp(self, params: Params, x: jax.Array) -> jax.Array:
        up = layers.linear(x, params["up"], params.get("up_bias"))
        if self.section.activation == "swiglu":
            hidden = jax.nn.silu(layers.linear(x, params["gate"], params.get("gate_bias"))) * up
        else:
            hidden = layers.gelu(up) if self.section.activation == "gelu" else layers.gelu_tanh(up)
        return layers.linear(hidden, params["down"], params.get("down_bias"))
