"""An op with implementations that crash, hang and compute wrongly, for tests of what tries them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_kernels import timing
from jax_kernels.implementations import Config, Implementation
from jax_kernels.op import Op, TrainingProgram, Work


@dataclass(frozen=True)
class Call:
    """Twice an array of `length` numbers.

    Attributes:
        made_by_late: a file that the implementation "late" makes when it runs.
    """

    batch_fields: ClassVar = ("length",)

    length: int
    dtype: str = "float32"
    made_by_late: str = ""


def twice(call: Call, config: Config, x: jax.Array) -> jax.Array:
    return x * 2


def off(call: Call, config: Config, x: jax.Array) -> jax.Array:
    return x * 2.5


def crash(call: Call, config: Config, x: jax.Array) -> jax.Array:
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


def hang(call: Call, config: Config, x: jax.Array) -> jax.Array:
    time.sleep(600)
    return x


def late(call: Call, config: Config, x: jax.Array) -> jax.Array:
    """Runs once, and after that it crashes."""

    def run(x: np.ndarray) -> np.ndarray:
        file = Path(call.made_by_late)
        if file.exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        file.touch()
        return x * 2

    return jax.pure_callback(run, x, x)


def refuse(call: Call, config: Config, x: jax.Array) -> jax.Array:
    raise ValueError("the compiler cannot")


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    return lambda x: run(call, config, x), lambda: (jnp.arange(call.length, dtype=call.dtype),)


RUNS = {
    "reference": twice,
    "xla": twice,
    "off": off,
    "crash": crash,
    "hang": hang,
    "refuse": refuse,
    "good": twice,
    "late": late,
}

ODD = Op(
    "odd",
    __name__,
    Call,
    {name: Implementation(name, run, is_kernel=name not in ("reference", "xla")) for name, run in RUNS.items()},
    dict.fromkeys(("cpu", "gpu", "tpu"), ("off", "crash", "hang", "refuse", "good", "xla")),
    workload,
    lambda call: Work(0, 8 * call.length),
)


spent_s = 0.0
"""Seconds by which the clock of measurements is ahead."""


def spend(x: np.ndarray, seconds: float) -> np.ndarray:
    """Let time pass for the code that measures, without waiting, and more than a busy machine can add."""
    global spent_s
    spent_s += seconds
    timing.time = SimpleNamespace(perf_counter=lambda: time.perf_counter() + spent_s)  # type: ignore[assignment]
    return x


def slow(at: str) -> Callable[..., Any]:
    """An implementation that takes hours in one of its passes, more in the backward pass."""

    def spending(x: jax.Array, seconds: float) -> jax.Array:
        return jax.pure_callback(lambda x: spend(x, seconds), x, x)

    @jax.custom_vjp
    def run(x: jax.Array) -> jax.Array:
        return spending(x, 1e4) if at == "forward" else x

    run.defvjp(lambda x: (run(x), None), lambda _, d_out: (spending(d_out, 3e4) if at == "backward" else d_out,))
    return lambda call, config, x: run(x)


def trained_workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    def arguments() -> tuple[Any, ...]:
        (x,) = workload(call, run, config)[1]()
        return (x,), (), x

    return TrainingProgram(lambda x: run(call, config, x)), arguments


TRAINED = replace(
    ODD,
    name="trained",
    implementations={
        "xla": Implementation("xla", lambda call, config, x: x),
        **{f"slow_{at}": Implementation(f"slow_{at}", slow(at)) for at in ("forward", "backward")},
    },
    preference=dict.fromkeys(("cpu", "gpu", "tpu"), ("slow_forward", "slow_backward")),
    workload=trained_workload,
)

QUICK = replace(ODD, name="quick", preference=dict.fromkeys(("cpu", "gpu", "tpu"), ("off", "good", "xla")))
"""Without the implementations that end a process or take a limit's time."""
