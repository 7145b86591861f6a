"""What a project's own task may return, checked where it returns it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class WrongResult(Exception):
    """A method of a task returned what aifx cannot use; the message says what and what is expected."""


def check_sums(sums: Any) -> Any:
    """The result of `Task.objective`. Raises WrongResult unless "loss" is a pair of scalars among pairs."""
    if not isinstance(sums, Mapping):
        raise WrongResult(f"it returned {_kind(sums)}; expected a dict of (total, weight) by name")
    if "loss" not in sums:
        raise WrongResult(f'it returned no "loss", only {_names(sums)}; training follows total / weight of "loss"')
    for name, pair in sums.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise WrongResult(f"{name!r} is {_kind(pair)}; expected (total, weight)")
    for part, value in zip(("total", "weight"), sums["loss"], strict=True):
        if np.shape(value) != ():
            shape = list(np.shape(value))
            raise WrongResult(f'the {part} of "loss" has shape {shape}; expected a scalar, such as its sum')
    return sums


def check_metrics(metrics: Any) -> Any:
    """The result of `Task.metrics` with Python's numbers in place of NumPy's and JAX's. Raises WrongResult."""
    if not isinstance(metrics, Mapping):
        raise WrongResult(f"it returned {_kind(metrics)}; expected a dict of numbers by name")
    if "loss" not in metrics:
        raise WrongResult(f'it returned no "loss", only {_names(metrics)}; validation follows "loss"')
    plain = {str(name): _plain_metric(str(name), value) for name, value in metrics.items()}
    if isinstance(plain["loss"], bool) or not isinstance(plain["loss"], int | float):
        raise WrongResult(f"'loss' is {_kind(metrics['loss'])}; expected a number")
    return plain


def _plain_metric(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain_metric(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_metric(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if hasattr(value, "dtype") and np.shape(value) == () and np.asarray(value).dtype.kind in "biufV":
        number = np.asarray(value)
        return number.item() if number.dtype.kind in "biu" else float(number)
    raise WrongResult(f"{name!r} is {_kind(value)}; expected a number")


def _kind(value: Any) -> str:
    shape = np.shape(value) if hasattr(value, "dtype") else ()
    return f"{type(value).__name__} of shape {list(shape)}" if shape else f"a value of type {type(value).__name__}"


def _names(values: Mapping[Any, Any]) -> str:
    return ", ".join(repr(str(name)) for name in list(values)[:5]) or "nothing"


CHECKS: Mapping[str, Callable[[Any], Any]] = {"objective": check_sums, "metrics": check_metrics}
