"""A program: a function with the shapes and the places of its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from jax_kernels.dispatch import Choices, using


@dataclass(frozen=True, eq=False)
class Program:
    """A function that is compiled as one piece."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]  # abstract, with shardings
    donate: tuple[int, ...] = ()  # positions of arguments whose memory the results may take
    out_shardings: Any = None  # of the results; the compiler's choice if None
    kernels: Choices | None = None  # the implementations that it is traced with; the default ones if None
    compiler_options: dict[str, Any] | None = None

    @functools.cached_property
    def jitted(self) -> Any:
        def call(*arguments: Any) -> Any:
            return self.function(*arguments)

        call.__name__ = self.name  # of the compiled program, in traces and in the compilation cache
        places = {} if self.out_shardings is None else {"out_shardings": self.out_shardings}
        return jax.jit(call, donate_argnums=self.donate, compiler_options=self.compiler_options, **places)

    def lower(self, platforms: tuple[str, ...] | None = None) -> jax.stages.Lowered:
        """Traced for its arguments, also for absent `platforms` ("cuda"); `.compile()` gives the executable."""
        with self._with_kernels():
            lowered: jax.stages.Lowered = self.jitted.trace(*self.arguments).lower(lowering_platforms=platforms)
            return lowered

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The executable for its arguments, which takes no others."""
        return self.lower().compile()

    def jaxpr(self) -> Any:
        """The computation, traced for its arguments; nothing is lowered."""
        with self._with_kernels():
            return self.jitted.trace(*self.arguments).jaxpr

    def trace(self) -> Any:
        """Shapes and dtypes of its results; nothing is lowered. A call afterwards is not traced again."""
        with self._with_kernels():
            return self.jitted.eval_shape(*self.arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Compile for these arguments, unless that has been done, and run."""
        with self._with_kernels():
            return self.jitted(*arguments)

    def _with_kernels(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.kernels is None else using(self.kernels)
