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
class Family:
    """A family of models.

    Attributes:
        section: its `[model]`.
        make: (section, DataSpec) -> Model.
        presets: values of `[model]` by the name of a preset.
        hub: place of its Hugging Face map.
    """

    name: str
    section: type[Section]
    make: Make
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hub: str | None = None


@dataclass(frozen=True)
class ObjectiveKind:
    """An objective.

    Attributes:
        section: its `[objective]`.
        make: (section) -> Objective.
        metrics: numbers that it reports of any data.
        class_metrics: numbers that it also reports of each class, as `per_class.NAME.METRIC`.
    """

    name: str
    section: type[Section]
    make: Make
    metrics: tuple[str, ...] = ()
    class_metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataKind:
    """A kind of data.

    Attributes:
        section: its `[data]`.
        make: a class with the methods of `aifx.data.base.DataFormat`.
    """

    name: str
    section: type[Section]
    make: Make


def resolve(make: Make) -> Any:
    """The function or class behind `make`."""
    if not isinstance(make, str):
        return make
    module, _, name = make.partition(":")
    return getattr(importlib.import_module(module), name)
