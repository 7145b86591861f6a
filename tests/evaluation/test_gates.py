"""Gates: NAME OP NUMBER, and nothing that is not finite passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.config.gates import evaluate_gates, parse_gate, scalars
from aifx.core.errors import UsageError

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./-]{0,20}", fullmatch=True)
OPERATORS = st.sampled_from(["<=", ">=", "==", "<", ">"])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SPACE = st.text(" \t", max_size=3)


@pytest.mark.slow
@given(NAMES, OPERATORS, NUMBERS, NUMBERS, SPACE, SPACE)
def test_every_gate_reads_as_it_is_written(
    name: str, op: str, bound: float, value: float, left: str, right: str
) -> None:
    gate = parse_gate(f"{left}{name}{right}{op}{left}{bound!r}{right}")
    assert (gate.name, gate.op, gate.bound) == (name, op, bound)
    expected = {
        "<=": value <= bound,
        ">=": value >= bound,
        "==": value == bound,
        "<": value < bound,
        ">": value > bound,
    }
    (result,) = evaluate_gates([gate], {name: value})
    assert result.passed == expected[op]
    assert result.value == value


@given(OPERATORS, NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_fails_every_gate(op: str, bound: float, value: float) -> None:
    assert not parse_gate(f"loss {op} {bound!r}").passes(value)


@pytest.mark.parametrize(
    "expr",
    ["", "loss", "loss <=", "<= 2", "loss = 2", "loss != 2", "loss <= nan", "loss <= inf", "loss <= 1e999", "loss => 2",
     "loss <= 2 3", "1 < loss < 2", "loss <= two", "loss <= 2,5", "loss < = 2"],
)  # fmt: skip
def test_malformed(expr: str) -> None:
    with pytest.raises(UsageError, match="is not a gate"):
        parse_gate(expr)


@given(st.text(max_size=40))
def test_any_text_is_a_gate_or_a_usage_error(text: str) -> None:
    try:
        gate = parse_gate(text)
    except UsageError:
        return
    assert gate.name == gate.name.strip()
    assert math.isfinite(gate.bound)


def test_nested_metrics_are_named_by_their_path() -> None:
    metrics = {
        "accuracy": 0.9,
        "images": 3,
        "per_class": {"Ankle boot": {"recall": 0.5}},
        "confusion": [[1]],
        "on": True,
    }
    assert scalars(metrics) == {"accuracy": 0.9, "images": 3.0, "per_class.Ankle boot.recall": 0.5}
    assert evaluate_gates([parse_gate("per_class.Ankle boot.recall >= 0.5")], metrics)[0].passed


def test_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        evaluate_gates([parse_gate("acuracy >= 0.5")], {"accuracy": 0.9, "loss": 1.0})
    assert "accuracy" in caught.value.why
    with pytest.raises(UsageError, match="recall"):
        evaluate_gates([parse_gate("per_class.Boot.recal > 0.1")], {"per_class": {"Boot": {"recall": 0.5}}})
