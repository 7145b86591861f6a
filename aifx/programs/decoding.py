"""A model that writes: its params as its programs take them, and the programs that only read.

The one that embeds texts is also for encoders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from aifx.models.base import Decodes
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.programs.program import Program
from aifx.specs import ArraySpec, Params, Specs, map_specs
from jax_kernels.dispatch import Choices

Pooling: TypeAlias = Literal["mean", "first", "last"]


def embedding_program(
    hidden: Callable[[Params, jax.Array, jax.Array], jax.Array],
    params: Params,
    pooling: Pooling,
    kernels: Choices | None = None,
) -> Program:
    """(params, tokens `[rows, seq]`, counts `[rows]`) -> `[rows, embed]`: hidden states of each row's text, pooled.

    A row's text is as many of its first tokens as its count. It compiles for each shape of tokens that it is called
    with.

    Args:
        hidden: of these arguments, `[rows, seq, embed]`.
        params: arrays, or their shapes and dtypes.
    """

    def embed(params: Params, tokens: jax.Array, counts: jax.Array) -> jax.Array:
        return pool(hidden(params, tokens, counts).astype(jnp.float32), counts, pooling)

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    shapes = jax.ShapeDtypeStruct((1, 16), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return Program("embed", embed, (jax.tree.map(struct, params), *shapes), kernels=kernels)


def pool(hidden: jax.Array, counts: jax.Array, pooling: Pooling) -> jax.Array:
    """Vectors `[rows, embed]` of hidden states `[rows, seq, embed]`: the mean of a row's tokens, or one of them.

    Args:
        counts: `[rows]`; the first `counts` of a row's places are its tokens, the others are padding.
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return jnp.take_along_axis(hidden, (counts - 1)[:, None, None], axis=1)[:, 0]
    is_token = jnp.arange(hidden.shape[1]) < counts[:, None]
    return jnp.sum(jnp.where(is_token[..., None], hidden, 0), axis=1) / counts[:, None]


class DecodingPrograms:
    """The programs of a model that writes. `ServingPrograms` are those that write, for a pool of pages."""

    def __init__(
        self,
        model: Decodes,
        specs: Specs,
        layout: Layout,
        dtype: DTypeLike,
        kernels: Choices | None = None,
    ) -> None:
        """Each device of a mesh computes the same; it gathers what it does not hold of a layer when it needs it.

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

    def prepare(self, params: Params) -> Params:
        """The params as the programs read them fastest. Changed arrays are copies; the others are shared."""
        if self.layout.num_devices > 1:
            return params
        return self.model.for_decoding(params)

    @functools.lru_cache(maxsize=2)  # noqa: B019  # the cache goes with the process, as compiled programs do
    def embed(self, pooling: Pooling) -> Program:
        """(params, tokens `[rows, seq]`, counts `[rows]`) -> `[rows, embed]`: see `embedding_program`."""

        def hidden(params: Params, tokens: jax.Array, counts: jax.Array) -> jax.Array:
            return self.model.hidden(params, {"inputs": tokens}, self.context).reshape(*tokens.shape, -1)

        program = embedding_program(hidden, self.params, pooling, self.kernels)
        return replace(program, function=self._per_device(program.function))

    @functools.cached_property
    def log_probs(self) -> Program:
        """(params, tokens `[1, seq]`) -> `[seq, vocab]`: log-probabilities of the token that follows each, by the
        forward pass of training. It compiles for each number of tokens."""

        def log_probs(params: Params, tokens: jax.Array) -> jax.Array:
            hidden = self.model.hidden(params, {"inputs": tokens}, self.context)
            return jax.nn.log_softmax(self.model.head(params, self.context)(hidden))

        arguments = self.params, jax.ShapeDtypeStruct((1, 16), jnp.int32)
        return Program("log_probs", self._per_device(log_probs), arguments, kernels=self.kernels)

    def _per_device(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """`program`, whose first argument are the params; the others and the results are the same on each device."""
        if self.layout.num_devices == 1:  # whose params are those of `prepare`, which no spec describes
            return program

        def with_parts(params: Params, *others: Any) -> Any:
            return program(self.layout.parts(params, self.specs, self.model.gathers), *others)

        def run(params: Params, *others: Any) -> Any:
            in_specs = (self.layout.partitions(self.specs), *(PartitionSpec(),) * len(others))
            return self.layout.per_device(with_parts, in_specs, PartitionSpec())(params, *others)

        return run
