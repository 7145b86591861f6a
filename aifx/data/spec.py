"""The DataSpec, all that a model must know of its data: numbers, no examples. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import TypeAdapter

from aifx.core.errors import DataError
from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.core.parsing import fault_in, parse_json

SPEC_FILE = "data.json"
"""In a run's assets: the DataSpec that its model was made for."""

SCHEMA_VERSION = 1

ColumnKind: TypeAlias = Literal["numeric", "categorical", "boolean", "date"]


@dataclass(frozen=True)
class Field:
    """An array of a batch."""

    shape: tuple[int, ...]  # of one example, without the leading axis of rows
    dtype: str  # by NumPy's name
    axes: tuple[str | None, ...] = ()  # the logical name of each dimension, or None


@dataclass(frozen=True)
class Column:
    """An element of the inputs of a table, as its training split is.

    A numeric one is (value - mean) / scale, or NaN if the value is missing. A category is its number: 0 if it is
    unknown, 1 if it is missing, then the `categories` in order.
    """

    name: str  # in the file
    kind: ColumnKind
    part: str = ""  # which part of a date it is
    mean: float = 0.0
    scale: float = 1.0
    edges: tuple[float, ...] = ()  # of the bins of a numeric column, after scaling; increasing
    categories: tuple[str, ...] = ()

    @property
    def is_categorical(self) -> bool:
        return self.kind in ("categorical", "boolean")

    @property
    def num_categories(self) -> int:
        """Also unknown and missing; 0 for a number."""
        return len(self.categories) + 2 if self.is_categorical else 0


@dataclass(frozen=True)
class DataSpec:
    """The facts about its data that a model is made for: of the configuration, or inferred once and kept in the run."""

    fields: Mapping[str, Field]  # the arrays of a batch by name
    vocab_size: int | None = None  # tokens that inputs and targets may hold
    classes: tuple[str, ...] = ()  # names of the labels, in order
    target_size: int = 1  # numbers to predict for each example
    target_mean: float = 0.0  # the targets of a batch are (value - mean) / scale
    target_scale: float = 1.0
    columns: tuple[Column, ...] = ()  # of the inputs of a table, in order


def keep_spec(assets: Path, spec: DataSpec) -> None:
    """Keep with a run what its model is made for, so that it opens without its training data."""
    write_json(assets / SPEC_FILE, {"schema_version": SCHEMA_VERSION, **plain(spec)})


def need_spec(assets: Path) -> DataSpec:
    """The spec that `keep_spec` kept. Raises DataError if it is missing or cannot be used."""
    path = assets / SPEC_FILE
    try:
        document = parse_json(read_file(path))
        if (version := document.pop("schema_version")) != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {version}; this aifx reads {SCHEMA_VERSION}")
        return TypeAdapter(DataSpec).validate_python(document)
    except FileNotFoundError:
        why = f"{path} is missing; earlier versions of aifx did not write it"
        raise DataError("the run has a format that this aifx does not read", why, "train it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not describe data", fault_in(error), f"restore {path}") from None
