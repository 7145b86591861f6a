"""The decoder-only transformer: GPT-2, Llama and models between them, by configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec
from aifx.models.base import Head
from aifx.models.decoder.blocks import (
    check_layout,
    fuse_projections,
    mlp,
    norm,
    norm_of_heads,
    norm_of_sum,
    output_product,
    query_key_value,
    with_own_kv_head,
)
from aifx.models.decoder.decoding import PagedDecoding, SequenceContext, write_keys_values
from aifx.models.decoder.section import DecoderSection, head_dim, num_kv_heads, window_of
from aifx.models.decoder.specs import decoder_specs, rotary_of, window_rotary_of
from aifx.nn import layers
from aifx.nn.adapters import with_adapter_dropout
from aifx.nn.attention import attend_pages, attention_with_dropout, ring_attention
from aifx.nn.quantized import Int8Table, as_dense, lookup_rows
from aifx.nn.remat import rematerialized
from aifx.nn.rotary import turned
from aifx.nn.vocabulary import lookup
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.specs import LAYERS, Params, Specs, count_parameters
from jax_kernels._ops.attention import attention
from jax_kernels._ops.attention.mask import SegmentIds
from jax_kernels._ops.decode_attention import decode_attention

WEIGHTS, ATTENDED, MLP = range(3)
"""Places of a layer where dropout draws: the weights of attention, its output and the MLP's."""


class Decoder(PagedDecoding):
    """A decoder over `vocab_size` tokens, trained on sequences of `seq_len`; `DecoderSection.conflicts` checks it."""

    gathers = (LAYERS,)
    adapts = ("attention", "mlp")
    divides = ("vocab", "heads", "kv_heads", "mlp", "tokens", "seq")

    def __init__(self, section: DecoderSection, *, vocab_size: int, seq_len: int) -> None:
        self.section = section
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.max_seq_len = section.max_seq_len or seq_len
        self.num_kv_heads = num_kv_heads(section)
        self.head_dim = head_dim(section)
        self.rotary, self.window_rotary = rotary_of(section), window_rotary_of(section)
        self.scores: dict[str, Any] = {"scale": section.attention_scale, "logit_softcap": section.attention_softcap}

    def specs(self) -> Specs:
        return decoder_specs(self.section, self.vocab_size, self.max_seq_len)

    def flops(self, rows: int) -> int:
        """Forward and backward: tokens x (6 N + 12 L H Q T), PaLM appendix B (arXiv 2204.02311).

        N counts parameters that enter products: all but lookup tables (positions; the token table if it is not also
        the output). L layers, H heads of width Q, T tokens of context or window. A causal mask is not discounted,
        recomputation not counted.
        """
        specs = self.specs()
        lookups = {k: v for k, v in specs["embedding"].items() if k != "token" or not self.section.tie_embeddings}
        products = count_parameters(specs) - count_parameters(lookups)
        windows = (window_of(self.section, layer) or self.seq_len for layer in range(self.section.num_layers))
        attended = sum(min(window, self.seq_len) for window in windows) * self.section.num_heads * self.head_dim
        return rows * self.seq_len * (6 * products + 12 * attended)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """The head's input `[tokens, embed]` for `inputs` int32 `[batch, seq]`; on a mesh, for `Layout.own_tokens`.

        `segment_ids` `[batch, seq]` keeps attention within each document, `positions` `[batch, seq]` counts again in
        each.
        """
        inputs = batch["inputs"]
        sequences = SequenceContext(inputs.shape, batch.get("positions"), segment_ids=batch.get("segment_ids"))
        return self.forward(params, inputs, sequences, None, ctx)[0]

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        stored = params.get("output", params["embedding"]["token"])
        table = stored if "output" not in params or isinstance(stored, Int8Table) else None
        weight = stored if table is None else as_dense(table, params["final_norm"]["scale"].dtype).T
        axes = ctx.layout.dividing("vocab", self.vocab_size)
        return Head(weight, None, self.section.logit_softcap, axes, table)

    def for_decoding(self, params: Params) -> Params:
        """The params with matrices that read the same vectors side by side: fewer products, each a larger one."""
        return fuse_projections(params, self.section)

    def forward(
        self, params: Params, inputs: jax.Array, sequences: SequenceContext, cache: Params | None, ctx: ForwardContext
    ) -> tuple[jax.Array, Params | None]:
        """The head's input `[tokens, embed]` for inputs `[batch, seq]`, and the layers' caches with them."""
        check_layout(self.section, ctx, is_packed=sequences.segment_ids is not None)
        dtype = params["final_norm"]["scale"].dtype
        x, sequences = self.embed(params["embedding"], inputs, sequences, ctx.layout, dtype)
        x = self.dropout(x, sequences, ctx, 0)  # of the model; keys within layers also have the layer's number

        def block_of(index: int) -> Callable[..., tuple[jax.Array, Params | None]]:
            its_sequences = sequences.of_layer(self.section, index)

            def block(x: jax.Array, per_layer: tuple[Params, Params | None, Any]) -> tuple[jax.Array, Params | None]:
                layer, cache, number = per_layer
                layer = with_adapter_dropout(ctx.layout.gather(layer), ctx, number, sequences.shape)
                its_ctx = layers.in_layer(ctx, number) if self.section.dropout else ctx
                return self.layer(layer, x, its_sequences, cache, its_ctx)

            return rematerialized(block, self.section.remat, ctx.layout)

        count = self.section.num_layers
        if self.section.scan_layers:
            x, cache = jax.lax.scan(block_of(0), x, (params[LAYERS], cache, jnp.arange(1, count + 1)))
        else:
            caches: Params = {}
            for index, name in enumerate(map(str, range(count))):
                per_layer = params[LAYERS][name], None if cache is None else cache[name], index + 1
                x, caches[name] = block_of(index)(x, per_layer)
            cache = None if cache is None else caches
        return norm(self.section, params["final_norm"], x), cache

    def embed(
        self, params: Params, inputs: jax.Array, sequences: SequenceContext, layout: Layout, dtype: DTypeLike
    ) -> tuple[jax.Array, SequenceContext]:
        """The vectors `[tokens, embed]` of inputs `[batch, seq]`; learned positions are added, rotary ones computed."""
        (batch, seq), positions = inputs.shape, sequences.positions
        if positions is None and layout.axes("seq"):
            positions = layout.seq_positions(seq)[None]
        is_sharded = bool(layout.axes("tokens") or layout.dividing("vocab", self.vocab_size))
        table = params["token"]
        x = (
            lookup(table, inputs.reshape(-1), layout, self.vocab_size)
            if is_sharded
            else lookup_rows(table, inputs, dtype)
        )
        x = x * math.sqrt(self.section.embed_dim) if self.section.embedding_scale else x
        if self.section.positions == "learned":
            # With a cache, the padding of a chunk may go beyond the last position; its results are not used.
            if sequences.cached is None and seq * layout.count("seq") > self.max_seq_len:
                raise ValueError(f"inputs: {seq} tokens, but learned positions end at {self.max_seq_len}")
            places = params["position"][:seq] if positions is None else params["position"][positions]
            if is_sharded:
                places = jnp.broadcast_to(places, (batch, seq, places.shape[-1])).reshape(batch * seq, -1)
                places = layout.own_tokens(places)
            x = x + places
        else:
            where = jnp.arange(seq)[None] if positions is None else positions
            in_window = None if self.window_rotary is None else self.window_rotary.angles(where, x.dtype)
            sequences = replace(sequences, angles=self.rotary.angles(where, x.dtype), window_angles=in_window)
        return x.reshape(-1, x.shape[-1]), sequences

    def layer(
        self, params: Params, x: jax.Array, sequences: SequenceContext, cache: Params | None, ctx: ForwardContext
    ) -> tuple[jax.Array, Params | None]:
        """One transformer block over x `[tokens, embed]`, and its part of the cache with these tokens in it.

        On a mesh, x are own tokens. This device's heads and part of the MLP read those of all along `tensor`.
        """
        y = norm(self.section, params.get("attention_norm"), x)
        attended, cache = self.attention(params["attention"], y, sequences, cache, ctx)
        attended = norm(self.section, params.get("attention_out_norm"), attended)
        y, x = norm_of_sum(self.section, params.get("mlp_norm"), self.dropout(attended, sequences, ctx, ATTENDED), x)
        y = norm(self.section, params.get("mlp_out_norm"), mlp(self.section, params["mlp"], y, ctx.layout))
        return x + self.dropout(y, sequences, ctx, MLP), cache

    def attention(
        self, params: Params, x: jax.Array, sequences: SequenceContext, cache: Params | None, ctx: ForwardContext
    ) -> tuple[jax.Array, Params | None]:
        """Causal attention of x `[tokens, embed]` within each sequence."""
        layout, window = ctx.layout, sequences.window
        x = layout.gather_tokens(x)
        if layout.axes("kv_heads") and not layout.dividing("kv_heads", self.num_kv_heads):
            params = with_own_kv_head(params, layout, self.num_kv_heads)
        q, k, v = (
            y.reshape(*sequences.shape, -1, self.head_dim)
            for y in query_key_value(params, x, self.section.num_heads, self.num_kv_heads)
        )
        if self.section.qk_norm:
            q, k = (norm_of_heads(self.section, params[f"{n}_norm"], x) for n, x in (("query", q), ("key", k)))
        if sequences.angles is not None:
            q, k = (turned(x, self.rotary.width, sequences.angles) for x in (q, k))
        cached = sequences.cached
        if cache is not None and cached is not None:
            cache = write_keys_values(cache, cached.page_table, cached.lengths, k, v)
            pages = cache["key"], cache["value"], cached.page_table
            if cached.new == "one":
                out = decode_attention(q[:, 0], *pages, cached.lengths + 1, window=window, **self.scores)
            else:
                out = attend_pages(q, *pages, cached.lengths, window=window, **self.scores)
        elif layout.is_ring and (axes := layout.axes("seq")):
            out = ring_attention(q, k, v, axes)
        else:
            k, v = layout.gather_seq(k), layout.gather_seq(v)
            segment_ids = sequences.segment_ids
            ids: SegmentIds | None = segment_ids
            if segment_ids is not None and layout.axes("seq"):
                ids = segment_ids, layout.gather_seq(segment_ids)
            if ctx.training and self.section.dropout:
                out = attention_with_dropout(q, k, v, self.section.dropout, ctx, WEIGHTS, ids, window, **self.scores)
            else:
                offset = layout.seq_start(q.shape[1])
                seen: dict[str, Any] = {"causal": True, "window": window, "segment_ids": ids, "q_offset": offset}
                out = attention(q, k, v, **seen, **self.scores)
        out = out.reshape(x.shape[0], -1)
        output = layers.as_matrix(params["output"], out.shape[1])
        return output_product(out, output, params.get("output_bias"), layout), cache

    def dropout(self, x: jax.Array, sequences: SequenceContext, ctx: ForwardContext, place: int) -> jax.Array:
        """x `[tokens, embed]` with dropout by sequence, in training: each token's is the same on every mesh."""
        if not ctx.training or not self.section.dropout:
            return x
        rate, (rows, seq), layout = self.section.dropout, sequences.shape, ctx.layout
        if not layout.axes("tokens"):
            return layers.dropout(x.reshape(rows, seq, -1), rate, ctx, place, layout.seq_positions(seq)).reshape(
                x.shape
            )
        assert ctx.row_ids is not None
        row, step = jnp.divmod(layout.own_tokens(jnp.arange(rows * seq)), seq)
        by_token = replace(ctx, row_ids=ctx.row_ids[row])
        return layers.dropout(x, rate, by_token, place, layout.seq_positions(seq)[step])


def make(section: DecoderSection, data: DataSpec) -> Decoder:
    """The decoder for sequences as `data` describes them. Raises ConfigError for an unknown or too small vocabulary."""
    inputs = data.fields.get("inputs")
    if inputs is None or len(inputs.shape) != 1 or not inputs.dtype.startswith("int"):
        found = "no such field" if inputs is None else f"{inputs.dtype} {list(inputs.shape)}"
        why = f"it reads the tokens of a sequence, and the field inputs of this data is {found}"
        raise ConfigError("a decoder cannot be trained on this data", why, "aifx config keys model    (other families)")
    vocab_size = section.vocab_size or data.vocab_size
    if vocab_size is None:
        why = "neither it nor the data says how many tokens there are"
        raise ConfigError("model.vocab_size is not set", why, "vocab_size = 50257 below [model]")
    if data.vocab_size is not None and vocab_size < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {vocab_size} is less than the vocabulary of the data, {data.vocab_size}",
            "every token needs a row of the embedding",
            f"aifx train --set model.vocab_size={data.vocab_size}",
        )
    return Decoder(section, vocab_size=vocab_size, seq_len=inputs.shape[0])
