"""Text from a decoder: one prefill of the prompt, then a token at a time from a cache of keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from aifx.models.decoder.model import Decoder
from aifx.models.decoder.paged_cache import Cache
from aifx.specs import Params, init_params, map_specs

SMALLEST_BUCKET = 16


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is drawn from its scores.

    Attributes:
        temperature: divides the scores; 0 takes the likeliest token.
        top_k: only this many likeliest tokens stay; 0 keeps all.
        top_p: of those, the likeliest whose probabilities first add up to this.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 or more, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: expected more than 0 and 1 at most, got {self.top_p}")

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """A token, int32, from `logits` `[vocab]`."""
        if self.temperature == 0.0:
            return jnp.argmax(logits).astype(jnp.int32)
        scores = logits / self.temperature
        if self.top_k or self.top_p < 1.0:
            order = jnp.argsort(-scores)
            rank = jnp.arange(scores.size)
            kept = rank < (self.top_k or scores.size)
            probabilities = jax.nn.softmax(jnp.where(kept, scores[order], -jnp.inf))
            kept &= (jnp.cumsum(probabilities) - probabilities < self.top_p) | (rank == 0)
            scores = jnp.where(jnp.zeros_like(kept).at[order].set(kept), scores, -jnp.inf)
        return jax.random.categorical(key, scores).astype(jnp.int32)


def generate(
    model: Decoder,
    params: Params,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
) -> Iterator[int]:
    """Tokens that continue the prompt, each as soon as it is known; ends before `eos_id` or after `max_tokens`.

    The same seed gives the same tokens. When the model's context is full, its older part is forgotten and the rest read
    anew: as much stays as leaves room for what is still to be written, at least half.

    Raises:
        ValueError: an empty prompt, a token outside of the vocabulary, or a sampling value out of its range.
    """
    sampler = Sampler(temperature, top_k, top_p)
    tokens = [int(t) for t in prompt_ids]
    if not tokens:
        raise ValueError("prompt_ids: expected one token at least, got none")
    outside = [t for t in tokens if not 0 <= t < model.vocab_size]
    if outside:
        raise ValueError(f"prompt_ids: expected tokens from 0 to {model.vocab_size - 1}, got {outside[0]}")
    return _generate(model, params, tokens, max_tokens, sampler, seed, eos_id)


def _generate(
    model: Decoder, params: Params, tokens: list[int], max_tokens: int, sampler: Sampler, seed: int, eos_id: int | None
) -> Iterator[int]:
    length = _bucket(len(tokens) + max_tokens, model.max_seq_len)
    key = jax.random.key(seed)
    held = length  # tokens in the cache; a full one makes the first token prefill
    for written in range(max_tokens):
        draw = jax.random.fold_in(key, written)
        if held == length:
            context = tokens[-(length - min(max_tokens - written, length // 2)) :]
            padded = np.zeros((1, _bucket(len(context), length)), np.int32)
            padded[0, : len(context)] = context
            cache, token = _prefill(model, sampler, length, params, padded, len(context), draw)
            held = len(context)
        else:
            cache, token = _decode(model, sampler, params, cache, token, draw)
            held += 1
        tokens.append(int(token))
        if tokens[-1] == eos_id:
            return
        yield tokens[-1]


def trace_generation(model: Decoder, *, max_tokens: int, dtype: DTypeLike, prompt_tokens: int = 1) -> None:
    """Trace what `generate` compiles for a prompt of so many tokens; nothing is computed."""
    params = map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), model.specs())
    length = _bucket(prompt_tokens + max_tokens, model.max_seq_len)
    padded = jax.ShapeDtypeStruct((1, _bucket(prompt_tokens, length)), jnp.int32)
    number, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    prefill, decode = (partial(f, model, Sampler()) for f in (read_prompt, read_token))
    cache, token = jax.eval_shape(partial(prefill, length), params, padded, number, key)
    jax.eval_shape(decode, params, cache, token, key)


def _bucket(count: int, most: int) -> int:
    """The power of two that holds `count`, so that few shapes are compiled."""
    return min(max(SMALLEST_BUCKET, 1 << (count - 1).bit_length()), most)


def read_prompt(
    model: Decoder, sampler: Sampler, length: int, params: Params, padded: jax.Array, count: jax.Array, key: jax.Array
) -> tuple[Cache, jax.Array]:
    """A new cache for `length` tokens with the first `count` of `padded` `[1, bucket]`, and the token drawn next."""
    dtype = params["embedding"]["token"].dtype
    cache = init_params(model.cache_specs(1, length, dtype), key)
    hidden, cache = model.prefill(params, padded, jnp.asarray(count, jnp.int32)[None], cache)
    last = jax.lax.dynamic_index_in_dim(hidden[0], count - 1, keepdims=False)
    return cache, sampler(model.logits(params, last), key)


def read_token(
    model: Decoder, sampler: Sampler, params: Params, cache: Cache, token: jax.Array, key: jax.Array
) -> tuple[Cache, jax.Array]:
    """The cache with `token` in it, and the one drawn after it."""
    hidden, cache = model.decode(params, token[None], cache)
    return cache, sampler(model.logits(params, hidden[0]), key)


_prefill = jax.jit(read_prompt, static_argnames=("model", "sampler", "length"))
_decode = jax.jit(read_token, static_argnames=("model", "sampler"), donate_argnames=("cache",))
