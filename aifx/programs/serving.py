"""The programs that write: one prefills a chunk of a prompt, others write one token for each of many rows.

All rows share the pages of one pool. Settings of a row are arguments, so no request compiles anything. A row's bits
depend on that row alone, as long as the shapes stay the same: there is one program for each number of rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aifx.models.base import Decodes
from aifx.nn.lora import choose_adapters
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.program import Program
from aifx.programs.sampling import Sampling, sample, top_tokens
from aifx.specs import ArraySpec, init_params, map_specs

Pool: TypeAlias = Any
"""A model's cache without its page table and lengths."""

PAGE_TABLE, LENGTHS = "page_table", "lengths"

MAX_TOP_LOGPROBS = 20
"""Likeliest tokens whose log-probabilities a row can have, as in OpenAI's API."""

MAX_LOGIT_BIAS = 300
"""Tokens of a row that can have a bias, as in OpenAI's API."""


SMALLEST_BUCKET = 16


class Rules(NamedTuple):
    """Changes to the logits of each row before a token is drawn (logits processors).

    Attributes:
        min_p: float32 `[rows]`; tokens below this share of the likeliest one's probability are left out.
        presence, frequency: float32 `[rows]`; subtracted once, and for each time, from tokens of the answer.
        repetition: float32 `[rows]`; divides positive scores of tokens of prompt and answer, multiplies negative ones.
        history: int32 `[rows, max_len]`; the tokens of prompt and answer.
        answer: int32 `[rows, 2]`; where the answer begins in them, and where they end.
        bias_tokens, bias: int32 and float32 `[rows, MAX_LOGIT_BIAS]`; added to the scores of these tokens.
        allowed: uint32 `[rows, ceil(vocab / 32)]`; token t only if bit t % 32 of word t // 32 is set.
        is_masked: bool `[rows]`; whether `allowed` counts.
    """

    min_p: Any
    presence: Any
    frequency: Any
    repetition: Any
    history: Any
    answer: Any
    bias_tokens: Any
    bias: Any
    allowed: Any
    is_masked: Any


class Draws(NamedTuple):
    """Settings of the draw of each row's token: arrays `[rows]`, and those of `rules`.

    The last three are None in programs without rules.

    Attributes:
        sampling: temperature, top_k, top_p.
        seeds: uint32.
        positions: int32; the number of the token in the answer. A draw depends on its seed and position alone.
        num_top: int32; log-probabilities of so many of the likeliest are wanted; -1 wants none at all.
        adapters: int32; the row's adapter among those that are loaded; -1 for none.
    """

    sampling: Sampling
    seeds: Any
    positions: Any
    num_top: Any = None
    adapters: Any = None
    rules: Rules | None = None


class Drawn(NamedTuple):
    """A token of each row.

    Attributes:
        token: int32 `[rows]`.
        is_finite: bool `[rows]`; False if the model's scores were not numbers.
        logprob: float32 `[rows]`; of the token under the model, before any rule; 0 if none was wanted.
        top_tokens, top_logprobs: int32 and float32 `[rows, MAX_TOP_LOGPROBS]`; the likeliest, in order.
    """

    token: jax.Array
    is_finite: jax.Array
    logprob: jax.Array | None = None
    top_tokens: jax.Array | None = None
    top_logprobs: jax.Array | None = None


class Prefilled(NamedTuple):
    """The results of a chunk of a prompt.

    Attributes:
        drawn: the first token of the answer, `[1]`, if it was wanted: after the last chunk.
        logprobs: float32 `[chunk]`; of each of `targets`, if they were wanted.
        top_tokens, top_logprobs: `[chunk, MAX_TOP_LOGPROBS]`; the likeliest instead of each target.
        hidden_sum, hidden_last: float32 `[embed]`; of the chunk's tokens, and of its last.

    All but the first are None in programs without rules.
    """

    drawn: Drawn
    logprobs: jax.Array | None = None
    top_tokens: jax.Array | None = None
    top_logprobs: jax.Array | None = None
    hidden_sum: jax.Array | None = None
    hidden_last: jax.Array | None = None


# The keys and values of all rows are in one pool of pages, each for a fixed number of tokens, as in virtual memory
# (PagedAttention, Kwon et al. 2023, arXiv:2309.06180). A row's page table lists its pages in order: token t is in page
# t // page_size of the row, at place t % page_size. So a row takes memory as it grows, none is lost between rows of
# different lengths, and rows with the same beginning can share its pages. Tables are arguments of the programs: the
# engine gives and takes pages between two calls, and nothing is compiled again.
class ServingPrograms:
    """The programs of a model that serves, for a pool of pages. Each is made once."""

    def __init__(
        self,
        decoding: DecodingPrograms,
        params: Any,
        num_pages: int,
        max_len: int,
        layout: Layout | None = None,
        *,
        has_rules: bool = True,
    ) -> None:
        """
        Args:
            params: those of `DecodingPrograms.prepare`, or their shapes.
            layout: on which the model can divide its heads and its vocabulary, if there are several devices. Devices
                along `tensor` have a part of each product and of the pool; those along `fsdp` gather each layer.
                By default, each device computes the same.
            max_len: tokens of a prompt with its answer, at the most.
            has_rules: whether rows can have rules, scores and adapters. Without, there is less to compile.
        """
        self.decoding, self.model, self.params = decoding, decoding.model, structs(params)
        self.has_rules = has_rules
        self.vocab_size, self.num_pages, self.max_len = self.model.vocab_size, num_pages, max_len
        self.layout = tensor_layout(layout or decoding.layout, self.model)
        self._context = ForwardContext(self.layout)
        whole = self.model.cache_specs(1, max_len, decoding.dtype)
        self.pages_per_row = whole[PAGE_TABLE].shape[1]
        self._pool_specs = _pool_of(self.model.cache_specs(1, num_pages * self.model.page_size, decoding.dtype))

    @functools.cached_property
    def init_pool(self) -> Program:
        """() -> an empty pool."""
        places = jax.tree.map(lambda x: x.sharding, self.pool) if self.layout.num_devices > 1 else None
        return Program("init_pool", lambda: init_params(self._pool_specs, jax.random.key(0)), (), out_shardings=places)

    @property
    def pool(self) -> Pool:
        """The pool as shapes, dtypes and shardings."""
        if self.layout.num_devices == 1:
            return map_specs(lambda spec: spec.struct, self._pool_specs)

        def struct(spec: ArraySpec) -> jax.ShapeDtypeStruct:
            place = NamedSharding(self.layout.mesh, self._pool_partition(spec))
            return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place)

        return map_specs(struct, self._pool_specs)

    def _pool_partition(self, spec: ArraySpec) -> PartitionSpec:
        return PartitionSpec(*(axes or None for axes in self.layout.stored(spec, self.layout.computation)))

    @functools.lru_cache(maxsize=16)  # noqa: B019  # the cache goes with the process, as compiled programs do
    def decode(self, rows: int, block: int | None = None) -> Program:
        """(params, pool, tokens `[rows]`, lengths `[rows]`, page table `[rows, pages_per_row]`, draws) -> the pool with
        a token more of each row, at position `lengths`, and what is drawn next. A row without pages writes nothing.

        Args:
            block: rows that are drawn together, a divisor of `rows`; all by default. XLA's CPU backend adds up a row of
                8 in another order than a row of 16, so programs of several sizes draw for as many rows as the smallest.
        """
        block = block or rows

        def decode(
            params: Any, pool: Pool, tokens: jax.Array, lengths: jax.Array, table: jax.Array, draws: Draws
        ) -> tuple[Pool, Drawn]:
            cache = {**pool, PAGE_TABLE: table, LENGTHS: lengths}
            if self.has_rules:
                params = choose_adapters(params, draws.adapters)
            hidden, cache = self.model.decode(params, tokens, cache, self._context)
            return _pool_of(cache), self._draw(params, hidden, draws, block)

        counts = jax.ShapeDtypeStruct((rows,), jnp.int32)
        table = jax.ShapeDtypeStruct((rows, self.pages_per_row), jnp.int32)
        arguments = self.params, self.pool, counts, counts, table, structs(self.draws(rows))
        return self._program(f"serve_decode_{rows}", decode, arguments)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def prefill(self, chunk: int) -> Program:
        """(params, pool, tokens `[1, chunk]`, targets `[1, chunk]`, [start, count, wants token, wants targets], page
        table `[1, pages_per_row]`, draws of one row) -> the pool with these tokens from `start` on, and `Prefilled`."""

        def prefill(
            params: Any,
            pool: Pool,
            tokens: jax.Array,
            targets: jax.Array,
            facts: jax.Array,
            table: jax.Array,
            draws: Draws,
        ) -> tuple[Pool, Prefilled]:
            start, count, wants_token, wants_targets = facts
            cache = {**pool, PAGE_TABLE: table, LENGTHS: start[None]}
            if self.has_rules:
                params = choose_adapters(params, jnp.broadcast_to(draws.adapters, chunk))
            hidden, cache = self.model.extend(params, tokens, cache, self._context)
            last = jax.lax.dynamic_slice_in_dim(hidden[0], count - 1, 1)
            if not self.has_rules:  # of one row: it has few chunks, so a token is drawn after each
                return _pool_of(cache), Prefilled(self._draw(params, last, draws))
            drawn = compute_if(wants_token > 0, lambda: self._draw(params, last, draws))
            scores = compute_if(wants_targets > 0, lambda: self._scores_of(params, hidden[0], targets[0]))
            wide = hidden[0].astype(jnp.float32)
            own = jnp.where((jnp.arange(chunk) < count)[:, None], wide, 0.0)
            logprobs, top, top_logprobs = scores
            pooled = own.sum(axis=0), last[0].astype(jnp.float32)
            return _pool_of(cache), Prefilled(drawn, logprobs, top, top_logprobs, *pooled)

        tokens, facts = jax.ShapeDtypeStruct((1, chunk), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32)
        table = jax.ShapeDtypeStruct((1, self.pages_per_row), jnp.int32)
        arguments = self.params, self.pool, tokens, tokens, facts, table, structs(self.draws(1))
        return self._program(f"serve_prefill_{chunk}", prefill, arguments)

    def draws(self, rows: int) -> Draws:
        """Draws of rows that are not used, as NumPy arrays to be changed: greedy, without rules."""
        zeros, counts = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
        sampling = Sampling(zeros.copy(), counts.copy(), np.ones(rows, np.float32))
        if not self.has_rules:
            return Draws(sampling, np.zeros(rows, np.uint32), counts)
        words = -(-self.vocab_size // 32)
        rules = Rules(
            zeros.copy(),
            zeros.copy(),
            zeros.copy(),
            np.ones(rows, np.float32),
            np.zeros((rows, self.max_len), np.int32),
            np.zeros((rows, 2), np.int32),
            np.zeros((rows, MAX_LOGIT_BIAS), np.int32),
            np.zeros((rows, MAX_LOGIT_BIAS), np.float32),
            np.zeros((rows, words), np.uint32),
            np.zeros(rows, bool),
        )
        return Draws(
            sampling,
            np.zeros(rows, np.uint32),
            counts.copy(),
            np.full(rows, -1, np.int32),
            np.full(rows, -1, np.int32),
            rules,
        )

    def _program(self, name: str, function: Any, arguments: tuple[Any, ...]) -> Program:
        kernels, layout, specs = self.decoding.kernels, self.layout, self.decoding.specs
        if layout.num_devices == 1:
            return Program(name, function, arguments, donate=(1,), kernels=kernels)

        def with_parts(params: Any, *others: Any) -> Any:
            return function(layout.parts(params, specs, self.model.gathers), *others)

        pool = map_specs(self._pool_partition, self._pool_specs)
        in_specs = (layout.partitions(specs), pool, *(PartitionSpec(),) * (len(arguments) - 2))
        mapped = layout.per_device(with_parts, in_specs, (pool, PartitionSpec()))
        return Program(name, mapped, arguments, donate=(1,), kernels=kernels)

    def _draw(self, params: Any, hidden: jax.Array, draws: Draws, block: int = 1) -> Drawn:
        """A token of each row of `hidden` `[rows, embed]`, drawn for `block` rows at a time."""
        logits, rows = self._logits(params, hidden), hidden.shape[0]
        if rows == block:
            return draw(logits, draws)
        blocks = jax.tree.map(lambda x: x.reshape(rows // block, block, *x.shape[1:]), (logits, draws))
        found = jax.lax.map(lambda part: draw(*part), blocks)
        drawn: Drawn = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), found)
        return drawn

    def _scores_of(self, params: Any, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        return scores_of(self._logits(params, hidden), targets)

    def _logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """Float32 `[rows, vocab]`: of the whole vocabulary, on each device."""
        head = self.model.head(params, self._context)
        logits = head(hidden).astype(jnp.float32)
        return jax.lax.all_gather(logits, head.axes, axis=1, tiled=True) if head.axes else logits


def one_row(decoding: DecodingPrograms, params: Any, max_len: int) -> ServingPrograms:
    """The programs of one row without rules, of up to `max_len` tokens: made once for params of the same shapes."""
    leaves, tree = jax.tree.flatten(structs(params))
    return _one_row(decoding, tree, tuple(leaves), max_len)


@functools.lru_cache(maxsize=4)
def _one_row(decoding: DecodingPrograms, tree: Any, leaves: tuple[Any, ...], max_len: int) -> ServingPrograms:
    num_pages = -(-max_len // decoding.model.page_size)
    return ServingPrograms(decoding, jax.tree.unflatten(tree, leaves), num_pages, max_len, has_rules=False)


def draw(logits: jax.Array, draws: Draws) -> Drawn:
    """A token of each row of logits `[rows, vocab]`."""
    ruled = logits if draws.rules is None else apply_rules(logits, draws.sampling.temperature, draws.rules)
    keys = jax.vmap(lambda seed, at: jax.random.fold_in(jax.random.key(seed), at))(draws.seeds, draws.positions)
    token = sample(ruled, keys, draws.sampling)
    is_finite = jnp.isfinite(jnp.max(logits, axis=1))
    if draws.num_top is None:
        return Drawn(token, is_finite)
    return Drawn(token, is_finite, *compute_if(jnp.any(draws.num_top >= 0), lambda: scores_of(logits, token)))


def compute_if(condition: jax.Array, compute: Callable[[], Any]) -> Any:
    """The result of `compute`, or zeros of its shapes."""
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
    return jax.lax.cond(condition, compute, lambda: empty)


def tensor_layout(layout: Layout, model: Decodes) -> Layout:
    """The layout of which devices along `tensor` divide a layer, and all have the same rows."""
    sharded = set(model.divides) - {"batch", "seq"}
    return replace(layout, computation={name: axes for name, axes in layout.computation.items() if name in sharded})


def scores_of(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of tokens `[rows]`; the likeliest tokens and theirs, `[rows, MAX_TOP_LOGPROBS]`, in order."""
    norm = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    top, top_logits = top_tokens(logits, MAX_TOP_LOGPROBS)
    own = jnp.take_along_axis(logits, tokens[:, None], axis=1) - norm
    return own[:, 0], top, top_logits - norm


def apply_rules(logits: jax.Array, temperature: jax.Array, rules: Rules) -> jax.Array:
    """Logits `[rows, vocab]` as the rules of each row change them. A rule that no row has costs nothing."""
    rows, vocab = logits.shape
    row = jnp.arange(rows)[:, None]

    def penalized(logits: jax.Array) -> Any:
        place = jnp.arange(rules.history.shape[1])
        is_held = place < rules.answer[:, 1:]
        is_written = is_held & (place >= rules.answer[:, :1])
        count = jnp.zeros((rows, vocab), jnp.float32)
        written = count.at[row, rules.history].add(is_written.astype(jnp.float32))
        held = count.at[row, rules.history].add(is_held.astype(jnp.float32)) > 0
        factor = jnp.where(held, rules.repetition[:, None], 1.0)
        logits = jnp.where(logits > 0, logits / factor, logits * factor)
        return logits - rules.frequency[:, None] * written - rules.presence[:, None] * (written > 0)

    def biased(logits: jax.Array) -> jax.Array:
        return logits.at[row, rules.bias_tokens].add(rules.bias)

    def masked(logits: jax.Array) -> Any:
        bits = (rules.allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        allowed = bits.reshape(rows, -1)[:, :vocab] > 0
        return jnp.where(allowed | ~rules.is_masked[:, None], logits, -jnp.inf)

    def without_unlikely(logits: jax.Array) -> jax.Array:
        # p / p_max = exp((logit - top) / temperature)
        top = jnp.max(logits, axis=1, keepdims=True)
        share = jnp.where(rules.min_p > 0, jnp.log(jnp.maximum(rules.min_p, 1e-37)), -jnp.inf)
        reach = jnp.where(rules.min_p > 0, share * temperature, -jnp.inf)
        return jnp.where(logits >= top + reach[:, None], logits, -jnp.inf)

    def where(condition: jax.Array, change: Callable[[jax.Array], Any], logits: jax.Array) -> jax.Array:
        # A row without the rule keeps its bits, whichever other row has it.
        def changed(x: jax.Array) -> jax.Array:
            return jnp.where(condition[:, None], change(x), x)

        found: jax.Array = jax.lax.cond(jnp.any(condition), changed, lambda x: x, logits)
        return found

    has_penalty = (rules.presence != 0) | (rules.frequency != 0) | (rules.repetition != 1)
    logits = where(has_penalty, penalized, logits)
    logits = where(jnp.any(rules.bias != 0, axis=1), biased, logits)
    logits = where(rules.is_masked, masked, logits)
    return where(rules.min_p > 0, without_unlikely, logits)


def bucket(count: int, most: int) -> int:
    """The power of two that holds `count`, so that few shapes are compiled."""
    return min(max(SMALLEST_BUCKET, 1 << (count - 1).bit_length()), most)


def structs(tree: Any) -> Any:
    """Shapes, dtypes and, of arrays that devices divide, shardings."""

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        place = getattr(x, "sharding", None)
        sharding = place if place is not None and place.num_devices > 1 else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(struct, tree)


def page_bytes(model: Decodes, dtype: Any) -> int:
    """Bytes of a page in all layers."""
    leaves = jax.tree.leaves(
        map_specs(lambda spec: spec.struct, _pool_of(model.cache_specs(1, model.page_size, dtype)))
    )
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _pool_of(cache: Any) -> Pool:
    return {name: value for name, value in cache.items() if name not in (PAGE_TABLE, LENGTHS)}
