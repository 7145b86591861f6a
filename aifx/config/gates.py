"""Gates: conditions that a checkpoint must meet, written `NAME OP NUMBER` ("bits_per_byte <= 2.2")."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aifx.core.errors import UsageError, did_you_mean

_OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GATE = re.compile(rf"\s*(?P<name>[^<>=!\s](?:[^<>=!]*[^<>=!\s])?)\s*(?P<op><=|>=|==|<|>)\s*(?P<bound>{_NUMBER})\s*")


@dataclass(frozen=True)
class Gate:
    """A condition on one metric. A nested one is named by its path: `per_class.Shirt.recall >= 0.5`."""

    expr: str
    name: str
    op: str
    bound: float

    @property
    def is_of_slices(self) -> bool:
        """Whether it is about values of a column in `eval.slices`, which are known once the data is read."""
        return self.name.startswith("slices.")

    def passes(self, value: float) -> bool:
        """Whether `value` is within the bound. One that is not finite never is."""
        return math.isfinite(value) and bool(_OPERATORS[self.op](value, self.bound))


@dataclass(frozen=True)
class GateResult:
    expr: str
    value: float
    passed: bool


def parse_gate(expr: str) -> Gate:
    """Parse `NAME OP NUMBER`. Raises UsageError for anything else."""
    match = _GATE.fullmatch(expr)
    if match is None or not math.isfinite(bound := float(match["bound"])):
        raise UsageError(
            f"{expr!r} is not a gate",
            "a gate is NAME OP NUMBER, with OP one of <= < >= > ==",
            'aifx eval --gate "loss <= 3.5"',
        )
    return Gate(expr, match["name"], match["op"], bound)


def check_names(gates: Iterable[Gate], known: Iterable[str]) -> None:
    """Check that the metric of each gate is known. Raises UsageError for one that is not."""
    names = list(known)
    for gate in gates:
        if gate.name not in names:
            near = did_you_mean(gate.name, [n for n in names if "." not in n or "." in gate.name])
            raise UsageError(f"gate {gate.expr!r}: there is no metric {gate.name!r}", near, "aifx eval lists them all")


def evaluate_gates(gates: Iterable[Gate], metrics: Mapping[str, Any]) -> tuple[GateResult, ...]:
    """Compare metrics with gates. Raises UsageError for a gate on a metric that does not exist."""
    numbers = scalars(metrics)
    chosen = tuple(gates)
    check_names(chosen, numbers)
    return tuple(GateResult(g.expr, numbers[g.name], g.passes(numbers[g.name])) for g in chosen)


def scalars(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a report, nested ones by their path with dots."""
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers |= scalars(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # a file's JSON has integers of any size
                numbers[f"{prefix}{name}"] = float(value)
    return numbers
