"""Writing token by token: one program reads a prompt, another adds one token."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
from aifx.programs.sampling import Sampling, sample
from aifx.specs import ArraySpec, Params, Specs, init_params, map_specs
from jax_kernels.dispatch import Choices

Cache: TypeAlias = Any
"""Of a model: nested dicts of arrays, as its `cache_specs` describes them."""

SMALLEST_BUCKET = 16


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

        Attributes:
            context: in which the model's functions run.
            params: those of `prepare`, as shapes, dtypes and shardings.
        """
        self.model, self.specs, self.dtype, self.kernels = model, specs, dtype, kernels
        self.layout = layout.whole
        self.context = ForwardContext(self.layout)
        self.params = jax.eval_shape(self.prepare, map_specs(self._struct, specs))

    @property
    def dtype_name(self) -> str:
        return str(jnp.dtype(self.dtype).name)

    def _struct(self, spec: ArraySpec) -> jax.ShapeDtypeStruct:
        if self.layout.num_devices == 1:
            return jax.ShapeDtypeStruct(spec.shape, self.dtype)
        place = NamedSharding(self.layout.mesh, self.layout.partition(spec))
        return jax.ShapeDtypeStruct(spec.shape, self.dtype, sharding=place)

    def per_device(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """`program`, whose first argument are the params; the others and the results are the same on each device."""

        if self.layout.num_devices == 1:  # whose params are those of `prepare`, which no spec describes
            return program

        def with_parts(params: Params, *others: Any) -> Any:
            return program(model_params(self.model, params, self.specs, self.layout), *others)

        def run(params: Params, *others: Any) -> Any:
            in_specs = (self.layout.partitions(self.specs), *(PartitionSpec(),) * len(others))
            return self.layout.per_device(with_parts, in_specs, PartitionSpec())(params, *others)

        return run

    def prepare(self, params: Params) -> Params:
        """The params as the programs read them fastest. Changed arrays are copies; the others are shared."""
        if self.layout.num_devices > 1:
            return params
        return self.model.for_decoding(params)

    @functools.lru_cache(maxsize=64)  # noqa: B019  # the cache goes with the process, as compiled programs do
    def prefill(self, rows: int, bucket: int, length: int) -> Program:
        """(params, prompts `[rows, bucket]`, counts `[rows]`, keys `[rows]`, sampling) -> a cache for `length` tokens
        of each row with the first of its prompt, as many as its count, and the token drawn next, `[rows]`."""

        def prefill(
            params: Params, prompts: jax.Array, counts: jax.Array, keys: jax.Array, sampling: Sampling
        ) -> tuple[Cache, jax.Array]:
            cache = init_params(self.model.cache_specs(rows, length, self.dtype), jax.random.key(0))
            hidden, cache = self.model.prefill(params, prompts, counts, cache, self.context)
            last = jnp.take_along_axis(hidden, (counts - 1)[:, None, None], axis=1)[:, 0]
            return cache, sample(self.model.head(params, self.context)(last), keys, sampling)

        prompts, counts = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, bucket), (rows,)))
        arguments = self.params, prompts, counts, *_draws(rows)
        return Program("prefill", self.per_device(prefill), arguments, kernels=self.kernels)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def decode(self, rows: int, length: int) -> Program:
        """(params, cache, tokens `[rows]`, keys `[rows]`, sampling) -> the cache with the tokens in it, and the token
        drawn next, `[rows]`."""

        def decode(
            params: Params, cache: Cache, tokens: jax.Array, keys: jax.Array, sampling: Sampling
        ) -> tuple[Cache, jax.Array]:
            hidden, cache = self.model.decode(params, tokens, cache, self.context)
            return cache, sample(self.model.head(params, self.context)(hidden), keys, sampling)

        cache = map_specs(lambda s: s.struct, self.model.cache_specs(rows, length, self.dtype))
        arguments = self.params, cache, jax.ShapeDtypeStruct((rows,), jnp.int32), *_draws(rows)
        return Program("decode", self.per_device(decode), arguments, donate=(1,), kernels=self.kernels)

    def for_generation(self, max_tokens: int, prompt_tokens: int = 1) -> tuple[Program, Program]:
        """The programs that `aifx generate` runs for a prompt of so many tokens."""
        length = bucket(prompt_tokens + max_tokens, self.model.max_seq_len)
        return self.prefill(1, bucket(prompt_tokens, length), length), self.decode(1, length)


def _draws(rows: int) -> tuple[jax.ShapeDtypeStruct, Sampling]:
    """Keys and sampling of so many rows."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    return keys, Sampling(*(jax.ShapeDtypeStruct((rows,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.float32)))


def bucket(count: int, most: int) -> int:
    """The power of two that holds `count`, so that few shapes are compiled."""
    return min(max(SMALLEST_BUCKET, 1 << (count - 1).bit_length()), most)
