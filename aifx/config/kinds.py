"""What a task is made of, by name: families of models, objectives, kinds of data. Imports no jax."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aifx.config.sections import Section

Make = str | Callable[..., Any]
"""A function or class, or its place as "module:name", which is imported when it is needed."""


@dataclass(frozen=True)
class Kind:
    """What a name in `aifx.toml` selects, with the type of its section."""

    name: str
    section: type[Section]
    make: Make


@dataclass(frozen=True)
class Family(Kind):
    """A family of models, whose `make` is (section, DataSpec) -> Model.

    Attributes:
        presets: values of `[model]` by name.
        hub: the module with its maps to architectures of Hugging Face, if it has any: `ARCHITECTURES`.
        is_trained: False for one that aifx only embeds with: no project can name it.
    """

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hub: str | None = None
    is_trained: bool = True


@dataclass(frozen=True)
class ObjectiveKind(Kind):
    """An objective, whose `make` is (section) -> Objective.

    Attributes:
        metrics: numbers that it reports of any data.
        class_metrics: numbers that it also reports of each class, as `per_class.NAME.METRIC`.
    """

    metrics: tuple[str, ...] = ()
    class_metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataKind(Kind):
    """A kind of data, whose `make` is a class with the methods of `aifx.data.base.DataFormat`."""


def resolve(make: Make) -> Any:
    """The function or class behind `make`."""
    if not isinstance(make, str):
        return make
    module, _, name = make.partition(":")
    return getattr(importlib.import_module(module), name)
