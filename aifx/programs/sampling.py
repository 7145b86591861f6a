"""Drawing the next token of each row from its scores, without sorting them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 128
"""Neighbouring tokens that are reduced first, before the results of blocks are: XLA is slow at long rows."""

FEW = 64
"""Up to this many largest scores are found among as many blocks, without bisection."""


State: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Sampling(NamedTuple):
    """Settings of the draw of each row's next token from its scores: arrays `[rows]`.

    Attributes:
        temperature: float32; divides the scores; 0 takes the likeliest token.
        top_k: int32; only this many likeliest tokens stay; 0 keeps all.
        top_p: float32; of those, the likeliest whose probabilities first add up to this.
    """

    temperature: Any
    top_k: Any
    top_p: Any

    @classmethod
    def of(cls, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, rows: int = 1) -> Sampling:
        """The same for all rows. Raises ValueError for a number out of its range."""
        if not temperature >= 0.0:
            raise ValueError(f"temperature: expected 0 or more, got {temperature}")
        if top_k < 0:
            raise ValueError(f"top_k: expected 0 or more, got {top_k}")
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p: expected more than 0 and 1 at most, got {top_p}")
        top_k = min(top_k, np.iinfo(np.int32).max)
        values = (temperature, jnp.float32), (top_k, jnp.int32), (top_p, jnp.float32)
        return cls(*(jnp.full(rows, value, dtype) for value, dtype in values))


def sample(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """A token of each row, int32 `[rows]`, from logits `[rows, vocab]` and keys `[rows]`.

    Exact, by rejection (Ye et al. 2025, FlashInfer, arXiv 2501.01005): a token that is drawn from all is taken if the
    likelier ones are so few, and so unlikely together, that it belongs to top-k and top-p. If not, the next is drawn
    from the likelier ones. Of equal scores, the first counts as likelier. A row's token depends on that row alone.
    """
    temperature, top_k, top_p = (x[:, None] for x in sampling)
    vocab = logits.shape[1]
    logits = jnp.pad(logits.astype(jnp.float32), ((0, 0), (0, -vocab % BLOCK)), constant_values=-jnp.inf)
    numbers = jnp.arange(logits.shape[1])
    likeliest, top = _largest(logits)
    weights = jnp.exp((logits - top) / jnp.where(temperature > 0, temperature, 1.0))
    top_k = jnp.where((top_k == 0) | (top_k > vocab), vocab, top_k)
    lowest = _kth_largest(logits, top_k, vocab)

    def before(logit: jax.Array, token: jax.Array) -> jax.Array:
        return (logits > logit) | ((logits == logit) & (numbers < token))

    def most() -> jax.Array:
        above = logits > lowest
        num_equal = top_k - _count(above)  # that are as low as the lowest, and among the k
        lowest_weight = jnp.exp((lowest - top) / jnp.where(temperature > 0, temperature, 1.0))
        total = jnp.sum(jnp.where(above, weights, 0.0), axis=1, keepdims=True) + num_equal * lowest_weight
        return jnp.where(top_p < 1.0, top_p * total, jnp.inf)

    is_limited = jnp.any((top_k < vocab) | (top_p < 1.0))
    limit = jax.lax.cond(jnp.any(top_p < 1.0), most, lambda: jnp.full_like(top, jnp.inf))

    def draw(state: State) -> State:
        tries, done, token, logit = state  # the next is drawn from those before `token`, which has this `logit`
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, tries), (2,)))(keys)
        allowed = (logits >= lowest) & before(logit, token)
        blocks = jnp.where(allowed, weights, 0.0).reshape(len(logits), -1, BLOCK)
        block = _choose(blocks.sum(axis=2), uniform[:, :1])
        own = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
        drawn = (block * BLOCK + _choose(own, uniform[:, 1:])).astype(jnp.int32)
        its_logit = jnp.take_along_axis(logits, drawn, axis=1)

        def is_outside() -> jax.Array:
            likelier = before(its_logit, drawn)
            sums = jnp.sum(jnp.where(likelier, weights, 0.0), axis=1, keepdims=True)
            outside: jax.Array = (_count(likelier) >= top_k) | (sums >= limit)
            return outside

        outside = jax.lax.cond(is_limited, is_outside, lambda: jnp.zeros_like(done))
        token, logit = (jnp.where(done, old, new) for old, new in ((token, drawn), (logit, its_logit)))
        return tries + 1, done | ~outside, token, logit

    greedy = temperature == 0
    start = jnp.zeros((), jnp.int32), greedy, jnp.where(greedy, likeliest, vocab), jnp.full_like(top, -jnp.inf)
    token: jax.Array = jax.lax.while_loop(lambda state: ~jnp.all(state[1]), draw, start)[2]
    return token[:, 0]


def top_tokens(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` tokens of largest score of each row, in order, int32 `[rows, count]`, and their scores."""
    vocab = logits.shape[1]
    if vocab < count:  # what does not exist is never likely
        logits = jnp.pad(logits, ((0, 0), (0, count - vocab)), constant_values=-jnp.inf)
    logits = jnp.pad(logits, ((0, 0), (0, -logits.shape[1] % BLOCK)), constant_values=-jnp.inf)
    # A block that holds one of them is among those with the largest maxima.
    blocks = logits.reshape(len(logits), -1, BLOCK)
    chosen = jnp.sort(jax.lax.top_k(blocks.max(axis=2), min(count, blocks.shape[1]))[1], axis=1)
    own = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(len(logits), -1)
    scores, places = jax.lax.top_k(own, count)
    block = jnp.take_along_axis(chosen, places // BLOCK, axis=1)
    return (block * BLOCK + places % BLOCK).astype(jnp.int32), scores


def _count(where: jax.Array) -> jax.Array:
    """The number of true elements of each row, `[rows, 1]`. XLA's CPU backend adds up floats faster than integers."""
    return jnp.sum(where.astype(jnp.float32), axis=1, keepdims=True).astype(jnp.int32)


def _largest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index of the largest score of each row, int32 `[rows, 1]`, and that score."""
    blocks = scores.reshape(len(scores), -1, BLOCK)
    block = jnp.argmax(blocks.max(axis=2), axis=1, keepdims=True)
    own = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    found = jnp.argmax(own, axis=1, keepdims=True)
    return (block * BLOCK + found).astype(jnp.int32), jnp.take_along_axis(own, found, axis=1)


def _kth_largest(scores: jax.Array, count: jax.Array, vocab: int) -> jax.Array:
    """The last of the `count` `[rows, 1]` largest scores of each row, `[rows, 1]`; -inf if all stay."""

    def among_few() -> jax.Array:
        # Blocks that hold one of the largest are among those with the largest maxima.
        blocks = scores.reshape(len(scores), -1, BLOCK)
        chosen = jax.lax.top_k(blocks.max(axis=2), min(FEW, blocks.shape[1]))[1]
        own = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(len(scores), -1)
        return jnp.take_along_axis(jax.lax.top_k(own, FEW)[0], jnp.minimum(count, FEW) - 1, axis=1)

    def by_bisection() -> jax.Array:
        # Bisection: the bits of float32 as integers have the same order, those of negative numbers turned over.
        bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
        places = bits ^ (bits >> 31 & 0x7FFFFFFF)

        def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
            found = _count(places >= middle)
            high = jnp.where(found > count, high, jnp.where(found == count, middle, middle - 1))
            return jnp.where(found >= count, middle, low), high

        high = places.max(axis=1, keepdims=True)
        start = jnp.where(count == vocab, high, places.min(axis=1, keepdims=True)), high
        low = jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, start)[0]
        return jnp.min(jnp.where(places >= low, scores, jnp.inf), axis=1, keepdims=True)

    def found() -> jax.Array:
        lowest: jax.Array = jax.lax.cond(jnp.all((count <= FEW) | ~is_cut), among_few, by_bisection)
        return lowest

    is_cut = count < vocab
    lowest = jax.lax.cond(jnp.any(is_cut), found, lambda: jnp.zeros(count.shape, scores.dtype))
    return jnp.where(is_cut, lowest, -jnp.inf)


def _choose(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """An index `[rows, 1]` into weights `[rows, n]`, drawn by numbers `[rows, 1]` from 0 to 1. Its weight is not 0."""
    sums = jnp.cumsum(weights, axis=1)
    hits = (sums > uniform * sums[:, -1:]) & (weights > 0)
    # Sums are rounded, each in its own way, so that none may be above.
    return jnp.argmax(jnp.where(jnp.any(hits, axis=1, keepdims=True), hits, weights), axis=1, keepdims=True)
