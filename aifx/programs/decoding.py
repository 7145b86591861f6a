"""Writing token by token: one program reads a prompt, another adds one token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from aifx.models.base import Decodes
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.programs.device_parts import model_params
from aifx.programs.program import Program
from aifx.specs import ArraySpec, Params, Specs, init_params, map_specs
from jax_kernels.dispatch import Choices

Cache: TypeAlias = Any
"""Of a model: nested dicts of arrays, as its `cache_specs` describes them."""

SMALLEST_BUCKET = 16


@dataclass(frozen=True)
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


class DecodingPrograms:
    """The programs of a model that writes. Each is made once, so that it is compiled once."""

    def __init__(
        self,
        model: Decodes,
        specs: Specs,
        layout: Layout,
        dtype: DTypeLike,
        kernels: Choices | None = None,
    ) -> None:
        """Each device of a mesh writes the same text; it gathers what it does not hold of a layer when it needs it.

        Args:
            dtype: of the parameters, as the programs take them.
        """
        self.model, self.specs, self.dtype, self.kernels = model, specs, dtype, kernels
        self.layout = layout.whole
        self._ctx = ForwardContext(self.layout)
        self._params = map_specs(self._struct, specs)
        self._key = jax.eval_shape(lambda: jax.random.key(0))

    def _struct(self, spec: ArraySpec) -> jax.ShapeDtypeStruct:
        if self.layout.num_devices == 1:
            return jax.ShapeDtypeStruct(spec.shape, self.dtype)
        place = NamedSharding(self.layout.mesh, self.layout.partition(spec))
        return jax.ShapeDtypeStruct(spec.shape, self.dtype, sharding=place)

    def _per_device(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """`program`, whose first argument are the params; the others and the results are the same on each device."""

        def with_parts(params: Params, *others: Any) -> Any:
            return program(model_params(self.model, params, self.specs, self.layout), *others)

        def run(params: Params, *others: Any) -> Any:
            in_specs = (self.layout.partitions(self.specs), *(PartitionSpec(),) * len(others))
            return self.layout.per_device(with_parts, in_specs, PartitionSpec())(params, *others)

        return run

    @functools.lru_cache(maxsize=64)  # noqa: B019  # the cache goes with the process, as compiled programs do
    def prefill(self, bucket: int, length: int, sampler: Sampler) -> Program:
        """(params, prompt `[1, bucket]`, count, key) -> a cache for `length` tokens with the first `count` of the
        prompt, and the token that is drawn next."""

        def prefill(params: Params, prompt: jax.Array, count: jax.Array, key: jax.Array) -> tuple[Cache, jax.Array]:
            cache = init_params(self.model.cache_specs(1, length, self.dtype), key)
            hidden, cache = self.model.prefill(params, prompt, jnp.asarray(count, jnp.int32)[None], cache, self._ctx)
            last = jax.lax.dynamic_index_in_dim(hidden[0], count - 1)
            return cache, sampler(self.model.head(params, self._ctx)(last)[0], key)

        prompt, count = jax.ShapeDtypeStruct((1, bucket), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        arguments = self._params, prompt, count, self._key
        return Program("prefill", self._per_device(prefill), arguments, kernels=self.kernels)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def decode(self, length: int, sampler: Sampler) -> Program:
        """(params, cache, token, key) -> the cache with the token in it, and the token that is drawn next."""

        def decode(params: Params, cache: Cache, token: jax.Array, key: jax.Array) -> tuple[Cache, jax.Array]:
            hidden, cache = self.model.decode(params, token[None], cache, self._ctx)
            return cache, sampler(self.model.head(params, self._ctx)(hidden)[0], key)

        cache = map_specs(lambda s: s.struct, self.model.cache_specs(1, length, self.dtype))
        token = jax.ShapeDtypeStruct((), jnp.int32)
        arguments = self._params, cache, token, self._key
        return Program("decode", self._per_device(decode), arguments, donate=(1,), kernels=self.kernels)

    def for_generation(self, max_tokens: int, prompt_tokens: int = 1) -> tuple[Program, Program]:
        """The programs that `aifx generate` runs for a prompt of so many tokens."""
        length = bucket(prompt_tokens + max_tokens, self.model.max_seq_len)
        return self.prefill(bucket(prompt_tokens, length), length, Sampler()), self.decode(length, Sampler())


def bucket(count: int, most: int) -> int:
    """The power of two that holds `count`, so that few shapes are compiled."""
    return min(max(SMALLEST_BUCKET, 1 << (count - 1).bit_length()), most)
