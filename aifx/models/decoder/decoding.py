"""Token by token with a decoder: a cache of keys and values in pages, so that a token costs what one token computes.

A cache is `{"page_table", "lengths", "layers"}`: the pages of each row in order `[batch, pages_per_row]`, the number of
tokens that each row holds `[batch]`, and by layer the pages of all rows. Rows have lengths of their own and grow by
whole pages, so that memory is not reserved for the longest answer, and rows that begin alike can name the same pages
(PagedAttention, Kwon et al. 2023, arXiv 2309.06180).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.models.base import Decodes
from aifx.models.decoder.section import DecoderSection, window_of
from aifx.models.decoder.specs import repeat_layer
from aifx.nn import initializers
from aifx.nn.rotary import Angles
from aifx.parallel.context import ForwardContext
from aifx.specs import LAYERS, ArraySpec, Params, Specs
from jax_kernels._ops.decode_attention import write_pages


@dataclass(frozen=True)
class Cached:
    """Where the cache holds each sequence."""

    page_table: jax.Array  # the pages of each sequence
    lengths: jax.Array  # tokens of each sequence in the cache, [batch]
    new: Literal["one", "many"]  # tokens of each sequence that come now, and attend to the cached ones


@dataclass(frozen=True)
class SequenceContext:
    """Positions, windows, documents and cached tokens: all that layers read in addition to the tokens' vectors.

    Row r of a layer's input `[batch * seq, embed]` is token r % seq of sequence r // seq.
    """

    shape: tuple[int, ...]  # (batch, seq)
    positions: jax.Array | None = None  # [batch, seq]; they count from 0 if None
    angles: Angles | None = None  # rotary angles of the positions, unless they are learned
    window_angles: Angles | None = None  # of layers with a window, if they have angles of their own
    window: int | None = None  # how far back attention reaches, itself included
    segment_ids: jax.Array | None = None  # [batch, seq], the document of each token; attention stays within it
    cached: Cached | None = None  # None in training, which has no cache

    def of_layer(self, section: DecoderSection, index: int) -> SequenceContext:
        """The sequences as the layer of this index, from 0, reads them."""
        window = window_of(section, index)
        angles = self.angles if window is None or self.window_angles is None else self.window_angles
        if not section.rope_layers[index % len(section.rope_layers)]:
            angles = None
        return replace(self, window=window, angles=angles)


Cache: TypeAlias = dict[str, Any]

PAGE_SIZE = 64
"""Tokens of a page."""


def page_table_specs(batch: int, length: int) -> Specs:
    """The pages of each row, for `length` tokens: as many for each, and those of a row follow each other."""
    shape = (batch, -(-length // PAGE_SIZE))
    return {
        "page_table": ArraySpec(shape, ("batch", None), _numbered, jnp.int32, kind="buffer"),
        "lengths": ArraySpec((batch,), ("batch",), initializers.zeros, jnp.int32, kind="buffer"),
    }


def page_specs(batch: int, length: int, num_kv_heads: int, head_dim: int, dtype: DTypeLike) -> Specs:
    """The pages of one layer, `[num_kv_heads, num_pages, page_size, head_dim]`."""
    shape = (num_kv_heads, batch * -(-length // PAGE_SIZE), PAGE_SIZE, head_dim)
    pages = ArraySpec(shape, ("kv_heads", None, None, "head_dim"), initializers.zeros, dtype, kind="buffer")
    return {"key": pages, "value": pages}


def write_keys_values(layer: Params, page_table: jax.Array, start: jax.Array, k: jax.Array, v: jax.Array) -> Params:
    """The layer's pages with k and v `[batch, seq, num_kv_heads, head_dim]` from each row's position `start` on."""
    new = {"key": k, "value": v}
    return {name: write_pages(pages, page_table, start, new[name].astype(pages.dtype)) for name, pages in layer.items()}


def _numbered(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jnp.arange(shape[0] * shape[1], dtype=dtype).reshape(shape)


class PagedDecoding(Decodes, Protocol):
    """The methods of `Decodes` for a decoder, by its forward pass."""

    page_size: int = PAGE_SIZE
    section: DecoderSection
    num_kv_heads: int
    head_dim: int

    def forward(
        self, params: Params, inputs: jax.Array, sequences: SequenceContext, cache: Params | None, ctx: ForwardContext
    ) -> tuple[jax.Array, Params | None]: ...

    def cache_specs(self, batch: int, length: int, dtype: Any = jnp.float32) -> Specs:
        """An empty cache for `length` tokens of each of `batch` rows."""
        layer = page_specs(batch, length, self.num_kv_heads, self.head_dim, dtype)
        return {**page_table_specs(batch, length), LAYERS: repeat_layer(layer, self.section)}

    def extend(self, params: Params, inputs: jax.Array, cache: Cache, ctx: ForwardContext) -> tuple[jax.Array, Cache]:
        """The head's input `[batch, seq, embed]` for more tokens of each row, `[batch, seq]`, and the cache with them.

        The new tokens see each other, in order, and those that the cache holds.
        """
        lengths = cache["lengths"]
        positions = lengths[:, None] + jnp.arange(inputs.shape[1])
        sequences = SequenceContext(inputs.shape, positions, cached=Cached(cache["page_table"], lengths, "many"))
        x, pages = self.forward(params, inputs, sequences, cache[LAYERS], ctx)
        extended = {**cache, "lengths": lengths + inputs.shape[1], LAYERS: pages}
        # On a mesh, a device has the vectors of its own tokens, and the head here reads those of all.
        return ctx.layout.gather_tokens(x).reshape(*inputs.shape, -1), extended

    def decode(self, params: Params, tokens: jax.Array, cache: Cache, ctx: ForwardContext) -> tuple[jax.Array, Cache]:
        """The head's input `[batch, embed]` for one more token per row, `[batch]`, and the cache with it."""
        lengths = cache["lengths"]
        sequences = SequenceContext(
            (tokens.size, 1), lengths[:, None], cached=Cached(cache["page_table"], lengths, "one")
        )
        x, pages = self.forward(params, tokens[:, None], sequences, cache[LAYERS], ctx)
        return ctx.layout.gather_tokens(x), {**cache, "lengths": lengths + 1, LAYERS: pages}
