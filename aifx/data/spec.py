"""What a model must know of its data: numbers, no examples. Imports no jax."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError
from aifx.core.files import read_file, replace_file
from aifx.core.parsing import parse_json

SPEC_FILE = "data.json"
"""In a run's assets: the DataSpec that its model was made for."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Field:
    """An array of a batch.

    Attributes:
        shape: of one example, without the leading axis of rows.
        dtype: by NumPy's name.
        axes: the logical name of each dimension, or None.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """From the configuration, or inferred once from the data and kept in the run's assets.

    Attributes:
        fields: the arrays of a batch by name.
        vocab_size: tokens that inputs and targets may hold.
        classes: names of the labels, in order.
        target_size: numbers to predict for each example.
    """

    fields: Mapping[str, Field]
    vocab_size: int | None = None
    classes: tuple[str, ...] = ()
    target_size: int = 1


def keep_spec(assets: Path, spec: DataSpec) -> None:
    """Keep with a run what its model is made for, so that it opens without its training data."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(spec)}
    replace_file(assets / SPEC_FILE, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")


def need_spec(assets: Path) -> DataSpec:
    """What `keep_spec` kept. Raises DataError if it is missing or cannot be used."""
    path = assets / SPEC_FILE
    try:
        document: Any = parse_json(read_file(path))
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {document['schema_version']}; this aifx reads {SCHEMA_VERSION}")
        fields = {
            str(name): Field(tuple(map(int, value["shape"])), str(value["dtype"]), tuple(value["axes"]))
            for name, value in document["fields"].items()
        }
        vocab_size = document["vocab_size"]
        return DataSpec(
            fields=fields,
            vocab_size=None if vocab_size is None else int(vocab_size),
            classes=tuple(map(str, document["classes"])),
            target_size=int(document["target_size"]),
        )
    except FileNotFoundError:
        why = f"{path} is missing; earlier versions of aifx did not write it"
        raise DataError("the run has a format that this aifx does not read", why, "train it again") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"{path} cannot be read", why, f"ls -l {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not describe data", str(error), f"restore {path}") from None
