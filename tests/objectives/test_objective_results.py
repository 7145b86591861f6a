"""Results of a project's own objective: used, or refused by name with its place."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.core.errors import ConfigError
from aifx.objectives.base import Objective
from aifx.objectives.checks import check_metrics, check_sums

PAIR = (jnp.float32(1.0), jnp.float32(2.0))


class Own(Objective):
    def sums(self, model: Any, params: Any, batch: Any, ctx: Any) -> Any:
        return None

    def metrics(self, totals: Any, data: Any) -> Any:
        return None


def check_place(error: ConfigError, method: Any) -> None:
    """The error names the method with its file and line."""
    line = inspect.getsourcelines(method)[1]
    assert error.what.startswith(f"{method.__qualname__} returned")
    assert f"({Path(inspect.getfile(method)).name}:{line})" in error.why


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ({"los": PAIR}, ['no "loss"', "'los'"]),
        (PAIR, ["type tuple", "dict"]),
        ({"loss": PAIR[0]}, ["'loss'", "(total, weight)"]),
        ({"loss": (jnp.ones(3), PAIR[1])}, ["total", "shape [3]", "scalar"]),
        ({"loss": (PAIR[0], jnp.ones((2, 1)))}, ["weight", "shape [2, 1]"]),
    ],
)
def test_sums_that_cannot_be_used(sums: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        jax.eval_shape(lambda: check_sums(Own(), sums))
    check_place(caught.value, Own.sums)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"accuracy": 1.0}, ['no "loss"', "'accuracy'"]),
        ({"loss": "low"}, ["'loss'", "type str", "number"]),
        ({"loss": 1.0, "f1": np.ones(3)}, ["'f1'", "ndarray of shape [3]"]),
        ({"loss": 1.0, "by": {"class": {1, 2}}}, ["'by.class'", "type set"]),
        ({"loss": 1.0, "list": [1, object()]}, ["'list[1]'", "type object"]),
        ([1.0], ["type list", "dict"]),
    ],
)
def test_metrics_that_cannot_be_used(metrics: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_metrics(Own(), metrics)
    check_place(caught.value, Own.metrics)
    for word in words:
        assert word in str(caught.value)


def test_scalars_of_numpy_and_jax_are_metrics() -> None:
    given = {"loss": np.float32(0.5), "n": np.int64(3), "z": np.array(2.0), "j": jnp.bfloat16(1.5), "b": np.bool_(True)}
    found = check_metrics(Own(), {**given, "by": {"class": (np.float64(1.0), None, "a")}})
    assert found == {"loss": 0.5, "n": 3, "z": 2.0, "j": 1.5, "b": True, "by": {"class": [1.0, None, "a"]}}
    kinds = {name: type(value) for name, value in found.items()}
    assert kinds == {"loss": float, "n": int, "z": float, "j": float, "b": bool, "by": dict}
