"""How a decoder writes: what it reads is kept in pages, so that a token costs what one token computes."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from aifx.models.base import Decodes
from aifx.models.decoder import paged_cache
from aifx.models.decoder.paged_cache import Cache
from aifx.models.decoder.section import DecoderSection
from aifx.models.decoder.sequences import Cached, Sequences
from aifx.models.decoder.specs import repeat_layer
from aifx.parallel.context import ForwardContext
from aifx.specs import LAYERS, Params, Specs


class Writes(Decodes, Protocol):
    """The part of a decoder that `Decodes` asks for, over its forward pass."""

    page_size: int = paged_cache.PAGE_SIZE
    section: DecoderSection
    num_kv_heads: int
    head_dim: int

    def forward(
        self, params: Params, inputs: jax.Array, sequences: Sequences, cache: Params | None, ctx: ForwardContext
    ) -> tuple[jax.Array, Params | None]: ...

    def cache_specs(self, batch: int, length: int, dtype: Any = jnp.float32) -> Specs:
        """An empty cache for `length` tokens of each of `batch` rows."""
        layer = paged_cache.layer_specs(batch, length, self.num_kv_heads, self.head_dim, dtype)
        return {**paged_cache.table_specs(batch, length), LAYERS: repeat_layer(layer, self.section)}

    def extend(self, params: Params, inputs: jax.Array, cache: Cache, ctx: ForwardContext) -> tuple[jax.Array, Cache]:
        """What the head reads, `[batch, seq, embed]`, of more tokens of each row, `[batch, seq]`, and the cache with
        them. They see each other and what the row holds already."""
        held = cache["lengths"]
        positions = held[:, None] + jnp.arange(inputs.shape[1])
        sequences = Sequences(inputs.shape, positions, cached=Cached(cache["page_table"], held, "many"))
        x, kept = self.forward(params, inputs, sequences, cache[LAYERS], ctx)
        kept_cache = {**cache, "lengths": held + inputs.shape[1], LAYERS: kept}
        return _of_all(x, ctx).reshape(*inputs.shape, -1), kept_cache

    def decode(self, params: Params, tokens: jax.Array, cache: Cache, ctx: ForwardContext) -> tuple[jax.Array, Cache]:
        """What the head reads, `[batch, embed]`, of one more token per row, `[batch]`, and the cache with it."""
        held = cache["lengths"]
        sequences = Sequences((tokens.size, 1), held[:, None], cached=Cached(cache["page_table"], held, "one"))
        x, kept = self.forward(params, tokens[:, None], sequences, cache[LAYERS], ctx)
        return _of_all(x, ctx), {**cache, "lengths": held + 1, LAYERS: kept}


def _of_all(x: jax.Array, ctx: ForwardContext) -> jax.Array:
    """The vectors `[tokens, embed]` of all tokens, of which a device along `tensor` has its own."""
    return ctx.layout.gather_tokens(x)
