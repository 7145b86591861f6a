"""Limits of versions of JAX: one table, which the dispatcher, the tests and `aifx kernels explain` read."""

from __future__ import annotations

from dataclasses import dataclass

import jax

Version = tuple[int, ...]


@dataclass(frozen=True)
class Limit:
    """An implementation that some versions of JAX do not run.

    Attributes:
        op: None for every op that has the implementation.
        since: the first version that runs it.
        interpreter_only: it compiles there all the same; what is missing is the interpreter.
    """

    implementation: str
    since: Version
    reason: str
    op: str | None = None
    interpreter_only: bool = False


LIMITS = (
    Limit(
        "pallas_mosaic_gpu",
        (0, 11, 2),  # jax/experimental/pallas/mosaic_gpu.py of the releases: not in 0.11.0, there in 0.11.2
        "Mosaic GPU has no interpreter before JAX 0.11.2",
        interpreter_only=True,
    ),
)


def limits_here() -> list[Limit]:
    """Those of the JAX that is installed."""
    return [limit for limit in LIMITS if jax.__version_info__ < limit.since]


def limit_of(op: str, implementation: str, *, interpreting: bool, version: Version | None = None) -> str | None:
    """The reason that this version of JAX (or another) cannot run the implementation of an op; None if it can."""
    version = version or jax.__version_info__
    for limit in LIMITS:
        applies = (
            limit.implementation == implementation
            and limit.op in (None, op)
            and (interpreting or not limit.interpreter_only)
        )
        if applies and version < limit.since:
            return limit.reason
    return None
