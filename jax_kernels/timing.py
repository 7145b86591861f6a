"""The time of a program's passes on the device, without the time in which the host starts them.

A GPU finishes a small kernel in a few microseconds, and the host needs ten times as long to start a program. So a short
pass is repeated by a loop inside one program, as `do_bench_cudagraph` of Triton repeats a kernel inside one CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels.op import TrainingProgram

ROUNDS = 7
"""Timings of each program, in alternation, so that a change of the machine's speed affects all of them."""

SHORTEST_S = 0.01
"""A timing lasts at least this long."""

SHORT_S = 1e-3
"""A pass that takes less is repeated inside one program. Above, starting it is hidden behind the one before."""


class Passes:
    """The forward pass of a program and, if it is a TrainingProgram, its backward pass.

    They are two programs, since a training runs other layers between them: in one, XLA would merge what both compute.
    """

    def __init__(self, program: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._program = program
        self._backward: _Pass | None = None
        if not isinstance(program, TrainingProgram):
            self._operands, self._forward = arguments, _Pass(program, arguments)
            return
        *operands, self._cotangents = arguments
        self._operands = tuple(operands)
        structure: Any = None
        places: list[int | None] = []

        def forward(*operands: Any) -> tuple[Any, list[Any]]:
            nonlocal structure, places
            results, pull = program.vjp(*operands)
            kept, structure = jax.tree.flatten(pull)
            # An operand or a result that the backward pass needs is there already: returned again, it would be copied.
            given = jax.tree.leaves((operands, results))
            places = [next((i for i, x in enumerate(given) if x is leaf), None) for leaf in kept]
            return results, [leaf for leaf, place in zip(kept, places, strict=True) if place is None]

        def backward(operands: Any, results: Any, rest: list[Any], cotangents: Any) -> Any:
            given, others = jax.tree.leaves((operands, results)), iter(rest)
            kept = [next(others) if place is None else given[place] for place in places]
            return jax.tree.unflatten(structure, kept)(cotangents)

        self._forward = _Pass(forward, self._operands)
        self._backward = _Pass(backward, (self._operands, *jax.eval_shape(forward, *operands), self._cotangents))

    def __call__(self) -> Any:
        """The results, and the gradients of a TrainingProgram."""
        if self._backward is None:
            return self._forward(*self._operands)
        results, rest = self._forward(*self._operands)
        return results, self._backward(self._operands, results, rest, self._cotangents)

    def time(self, *, is_trained: bool = True) -> tuple[float, float | None]:
        """Seconds of the forward and of the backward pass.

        Args:
            is_trained: otherwise there is no backward pass, and the forward pass keeps nothing for it.
        """
        if self._backward is None:
            return self._forward.time(*self._operands)[0], None
        if not is_trained:
            primals, constants = self._operands
            return self._inference.time(*primals, *constants)[0], None
        forward_s, found = self._forward.time(*self._operands)
        return forward_s, self._backward.time(self._operands, *found, self._cotangents)[0]

    @cached_property
    def _inference(self) -> _Pass:
        assert isinstance(self._program, TrainingProgram)
        primals, constants = self._operands
        return _Pass(self._program.forward, (*primals, *constants))


class _Pass:
    """A compiled program, and how often it runs per timing: `repeats` times per call, `calls` times in a row."""

    def __init__(self, program: Callable[..., Any], operands: tuple[Any, ...]) -> None:
        self._program = program
        self._compiled: Callable[..., Any] = jax.jit(program).lower(*operands).compile()
        self._repeats, self._calls = 1, 0

    def __call__(self, *operands: Any) -> Any:
        return self._compiled(*operands)

    def time(self, *operands: Any) -> tuple[float, Any]:
        """Seconds that the program takes, and its results."""
        if self._calls == 0:
            self._prepare(*operands)
        return self._time(*operands)

    def _prepare(self, *operands: Any) -> None:
        self._calls = 1
        seconds = min(self._time(*operands)[0] for _ in range(3))  # the first call allocates
        if seconds < SHORT_S:
            self._repeats = round(SHORTEST_S / max(seconds, 1e-6))
            compiled = jax.jit(repeated(self._program, self._repeats)).lower(*operands).compile()
            self._compiled = lambda *operands: compiled(*operands)[0]
            seconds = min(self._time(*operands)[0] for _ in range(2))
        self._calls = max(1, round(SHORTEST_S / max(seconds * self._repeats, 1e-6)))

    def _time(self, *operands: Any) -> tuple[float, Any]:
        started = time.perf_counter()
        for _ in range(self._calls):
            results = self._compiled(*operands)
        jax.block_until_ready(results)
        return (time.perf_counter() - started) / (self._calls * self._repeats), results


def repeated(program: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A program that runs `program` `count` times on the device and returns the last results and the count.

    Optimization barriers tie an iteration's operands to a counter, and the counter to its results. XLA can then neither
    move work out of the loop nor leave an iteration out, as long as the program returns the counter. `count` is a
    constant: a GPU whose loop could end after any iteration would wait for the host each time. The counter costs one
    addition per iteration.
    """

    def run(*operands: Any) -> tuple[Any, jax.Array]:
        def again(_: Any, carry: tuple[Any, jax.Array]) -> Any:
            _, done = carry
            fresh, done = lax.optimization_barrier((operands, done))
            return lax.optimization_barrier((program(*fresh), done + 1))

        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(program, *operands))
        found: tuple[Any, jax.Array] = lax.fori_loop(0, count, again, (start, jnp.int32(0)))
        return found

    return run


def time_in_turn(passes: Sequence[Passes], *, is_trained: bool = True) -> list[list[tuple[float, float | None]]]:
    """Seconds of the forward and the backward pass of each, ROUNDS times, in alternation."""
    for each in passes:
        each.time(is_trained=is_trained)  # chooses how often they run
    alternated = [[each.time(is_trained=is_trained) for each in passes] for _ in range(ROUNDS)]
    return [list(times) for times in zip(*alternated, strict=True)]
