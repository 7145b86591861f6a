"""Checks of what an objective returns, where it returns it: a project may bring its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec
from aifx.objectives.base import Objective, Sums


def check_sums(objective: Objective, sums: Any) -> Sums:
    """The result of `Objective.sums`. Raises ConfigError unless "loss" is a pair of scalars among pairs."""
    wrong = partial(_wrong_result, objective, "sums")
    if not isinstance(sums, Mapping):
        raise wrong(f"it returned {_kind(sums)}; expected a dict of (total, weight) by name")
    if "loss" not in sums:
        raise wrong(f'it returned no "loss", only {_names(sums)}; training follows total / weight of "loss"')
    for name, pair in sums.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise wrong(f"{name!r} is {_kind(pair)}; expected (total, weight)")
    for part, value in zip(("total", "weight"), sums["loss"], strict=True):
        if shape := np.shape(value):
            raise wrong(f'the {part} of "loss" has shape {list(shape)}; expected a scalar, such as its sum')
    return dict(sums)


def check_metrics(objective: Objective, metrics: Any) -> dict[str, Any]:
    """The result of `Objective.metrics` with Python's numbers instead of NumPy's and JAX's. Raises ConfigError."""
    wrong = partial(_wrong_result, objective, "metrics")

    def plain(name: str, value: Any) -> Any:
        if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
            return value
        if isinstance(value, Mapping):
            return {str(key): plain(f"{name}.{key}", item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(f"{name}[{index}]", item) for index, item in enumerate(value)]
        if hasattr(value, "dtype") and np.shape(value) == () and np.asarray(value).dtype.kind in "biufV":
            number = np.asarray(value)
            return number.item() if number.dtype.kind in "biu" else float(number)
        raise wrong(f"{name!r} is {_kind(value)}; expected a number")

    if not isinstance(metrics, Mapping):
        raise wrong(f"it returned {_kind(metrics)}; expected a dict of numbers by name")
    if "loss" not in metrics:
        raise wrong(f'it returned no "loss", only {_names(metrics)}; validation follows "loss"')
    found = {str(name): plain(str(name), value) for name, value in metrics.items()}
    if isinstance(found["loss"], bool) or not isinstance(found["loss"], int | float):
        raise wrong(f"'loss' is {_kind(metrics['loss'])}; expected a number")
    return found


def check_targets(data: DataSpec, what: str, kinds: str, count: int) -> None:
    """Raise ConfigError unless the data has `count` "targets" per example, of dtypes of these kinds (NumPy's letters).

    Args:
        what: what the objective needs, for the error.
    """
    targets = data.fields.get("targets")
    if targets is None:
        raise misfit(what, f'the data has no "targets", only {_names(data.fields)}')
    if np.dtype(targets.dtype).kind not in kinds or math.prod(targets.shape) != count:
        raise misfit(what, f"those of the data are {targets.dtype} {list(targets.shape)}")


def misfit(what: str, why: str) -> ConfigError:
    """The error of an objective that cannot be computed from such data or such a model."""
    return ConfigError(what, why, "change objective.kind, data.kind or model.family: docs/tasks.md")


def _wrong_result(objective: Objective, method: str, why: str) -> ConfigError:
    """The error of a method that returned what aifx cannot use, with the place of the method."""
    code = getattr(inspect.unwrap(getattr(objective, method)), "__code__", None)
    place = f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else ""
    what = f"{type(objective).__name__}.{method} returned what aifx cannot use"
    return ConfigError(what, f"{why}{place}", "docs/tasks.md")


def _kind(value: Any) -> str:
    shape = np.shape(value) if hasattr(value, "dtype") else ()
    return f"{type(value).__name__} of shape {list(shape)}" if shape else f"a value of type {type(value).__name__}"


def _names(values: Mapping[Any, Any]) -> str:
    return ", ".join(repr(str(name)) for name in list(values)[:5]) or "nothing"
