"""The decoder-only transformer: GPT-2, Llama and what lies between, by configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from aifx.config.sections import LanguageModelSection
from aifx.models.decoder import paged_cache
from aifx.models.decoder.paged_cache import Cache
from aifx.nn import initializers, layers
from aifx.specs import LAYERS, ArraySpec, Initializer, Params, Specs, count_parameters, stack_layer_specs
from jax_kernels._ops.attention import attention
from jax_kernels._ops.decode_attention import decode_attention
from jax_kernels._ops.norms import layer_norm, rms_norm
from jax_kernels._ops.rotary import rotary
from jax_kernels._ops.swiglu import swiglu

Angles: TypeAlias = tuple[jax.Array, jax.Array]

Attend: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, Params | None], tuple[jax.Array, Params | None]]
"""(q, k, v, a layer's part of the cache) -> what they attend to, shaped as q, and that part with k and v in it.
q `[batch, seq, num_heads, head_dim]`, k and v `[batch, seq, num_kv_heads, head_dim]`."""

INIT_STDDEV = 0.02  # GPT-2, openai/gpt-2 `src/model.py`


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
        """An empty cache for `length` tokens of each of `batch` rows."""
        layer = paged_cache.layer_specs(batch, length, self.num_kv_heads, self.head_dim, dtype)
        n = self.section.num_layers
        stacked = stack_layer_specs(layer, n) if self.section.scan_layers else {str(i): layer for i in range(n)}
        return {**paged_cache.table_specs(batch, length), LAYERS: stacked}

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
    ) -> jax.Array:
        """Logits `[batch, seq, vocab]`, float32 or wider, of the next token at each of `inputs` `[batch, seq]` int32.

        `segment_ids` `[batch, seq]` keeps attention within each document, `positions` `[batch, seq]` counts
        anew in each.
        """
        return self.logits(params, self.hidden(params, inputs, segment_ids=segment_ids, positions=positions))

    def hidden(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """What the output projection reads: `[batch, seq, embed]`, after the last norm."""

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Params | None) -> tuple[jax.Array, None]:
            return attention(q, k, v, causal=True, segment_ids=segment_ids), None

        return self._run(params, inputs, positions, attend, None)[0]

    def prefill(self, params: Params, inputs: jax.Array, lengths: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """`hidden` of prompts, and the cache with them in place of what it held.

        `inputs` `[batch, seq]`, of which each row's first `lengths` `[batch]` are its prompt and the rest fills up.
        """

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer: Params | None) -> tuple[jax.Array, Params]:
            assert layer is not None
            kept = paged_cache.write(layer, cache["page_table"], jnp.zeros_like(lengths), k, v)
            return attention(q, k, v, causal=True), kept

        hidden, kept = self._run(params, inputs, None, attend, cache[LAYERS])
        return hidden, {**cache, "lengths": lengths, LAYERS: kept}

    def decode(self, params: Params, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """`hidden` `[batch, embed]` of the token that follows each row, `tokens` `[batch]`, and the cache with it."""
        table, held = cache["page_table"], cache["lengths"]

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer: Params | None) -> tuple[jax.Array, Params]:
            assert layer is not None
            kept = paged_cache.write(layer, table, held, k, v)
            return decode_attention(q[:, 0], kept["key"], kept["value"], table, held + 1)[:, None], kept

        hidden, kept = self._run(params, tokens[:, None], held[:, None], attend, cache[LAYERS])
        return hidden[:, 0], {**cache, "lengths": held + 1, LAYERS: kept}

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Scores `[..., vocab]`, float32 or wider, of `hidden` `[..., embed]`."""
        scores = layers.linear_at_least_float32(hidden.reshape(-1, hidden.shape[-1]), self.output_weight(params))
        return scores.reshape(*hidden.shape[:-1], self.vocab_size)

    def output_weight(self, params: Params) -> jax.Array:
        """The projection from what `hidden` gives to the vocabulary, `[embed, vocab]`."""
        weight: jax.Array = params["embedding"]["token"].T if self.section.tie_embeddings else params["output"]
        return weight

    def _run(
        self, params: Params, inputs: jax.Array, positions: jax.Array | None, attend: Attend, cache: Params | None
    ) -> tuple[jax.Array, Params | None]:
        """`hidden`, and what `attend` leaves of the layers' caches. Positions count from 0 when None."""
        batch, seq = inputs.shape
        x = params["embedding"]["token"][inputs]
        angles = None
        if self.section.positions == "learned":
            x = x + self._position_rows(params["embedding"]["position"], seq, positions)
        else:
            where = jnp.arange(seq)[None] if positions is None else positions
            angles = layers.rotary_angles(where, self.head_dim, self.section.rope_theta, x.dtype)
        x, cache = self._blocks(params[LAYERS], x.reshape(batch * seq, -1), (batch, seq), angles, attend, cache)
        return self._norm(params["final_norm"], x).reshape(batch, seq, -1), cache

    def _position_rows(self, table: jax.Array, seq: int, positions: jax.Array | None) -> jax.Array:
        if seq > self.max_seq_len:
            raise ValueError(f"inputs: {seq} tokens, but learned positions end at {self.max_seq_len}")
        return table[:seq] if positions is None else table[positions]

    def _blocks(
        self,
        params: Params,
        x: jax.Array,
        shape: tuple[int, int],
        angles: Angles | None,
        attend: Attend,
        cache: Params | None,
    ) -> tuple[jax.Array, Params | None]:
        """All layers over x `[tokens, embed]`: a Python loop, or one compiled layer that is scanned over."""

        def block(x: jax.Array, layer: tuple[Params, Params | None]) -> tuple[jax.Array, Params | None]:
            own, cache = layer
            mixed, cache = self._attention(
                own["attention"], self._norm(own["attention_norm"], x), shape, angles, attend, cache
            )
            normed, x = self._norm_of_sum(own["mlp_norm"], mixed, x)
            return x + self._mlp(own["mlp"], normed), cache

        if self.section.remat:
            block = jax.checkpoint(block)
        if self.section.scan_layers:
            return jax.lax.scan(block, x, (params, cache))
        caches: Params = {}
        for i in range(self.section.num_layers):
            name = str(i)
            x, caches[name] = block(x, (params[name], None if cache is None else cache[name]))
        return x, None if cache is None else caches

    def _norm(self, params: Params, x: jax.Array) -> jax.Array:
        if self.section.norm == "layer_norm":
            return layer_norm(x, params["scale"], params.get("bias"), epsilon=self.section.norm_epsilon)
        y = rms_norm(x, params["scale"], epsilon=self.section.norm_epsilon)
        return y + params["bias"] if self.section.bias else y

    def _norm_of_sum(self, params: Params, x: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The norm of x + residual, and the sum: one pass over memory for both."""
        epsilon = self.section.norm_epsilon
        if self.section.norm == "layer_norm":
            return layer_norm(x, params["scale"], params.get("bias"), residual=residual, epsilon=epsilon)
        y, total = rms_norm(x, params["scale"], residual=residual, epsilon=epsilon)
        return (y + params["bias"] if self.section.bias else y), total

    def _attention(
        self,
        params: Params,
        x: jax.Array,
        shape: tuple[int, int],
        angles: Angles | None,
        attend: Attend,
        cache: Params | None,
    ) -> tuple[jax.Array, Params | None]:
        def heads(name: str, count: int) -> jax.Array:
            bias = params[f"{name}_bias"].reshape(-1) if self.section.bias else None
            y = layers.linear(x, layers.as_matrix(params[name], x.shape[1]), bias)
            return y.reshape(*shape, count, self.head_dim)

        q, k, v = (
            heads("query", self.section.num_heads),
            heads("key", self.num_kv_heads),
            heads("value", self.num_kv_heads),
        )
        if angles is not None:
            q, k = rotary(q, *angles), rotary(k, *angles)
        out, cache = attend(q, k, v, cache)
        out = out.reshape(x.shape[0], -1)
        return layers.linear(out, layers.as_matrix(params["output"], out.shape[1]), params.get("output_bias")), cache

    def _mlp(self, params: Params, x: jax.Array) -> jax.Array:
        is_plain = not self.section.bias and isinstance(params["up"], jax.Array)
        if self.section.activation == "swiglu" and is_plain:
            return layers.linear(swiglu(x, params["gate"], params["up"]), params["down"])
        hidden = layers.linear(x, params["up"], params.get("up_bias"))
        if self.section.activation == "swiglu":
            hidden *= jax.nn.silu(layers.linear(x, params["gate"], params.get("gate_bias")))
        else:
            hidden = layers.gelu(hidden) if self.section.activation == "gelu" else layers.gelu_tanh(hidden)
        return layers.linear(hidden, params["down"], params.get("down_bias"))
