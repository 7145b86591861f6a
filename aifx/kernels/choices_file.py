"""`kernels.json` of a run: the implementations that its programs use, by kind of device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aifx.core.errors import CheckpointError
from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.core.project import RunDirectory

KERNELS_VERSION = 3


def read_kernel_choices(run: RunDirectory) -> dict[str, list[dict[str, Any]]]:
    """The choices in `kernels.json` by kind of device; empty if it is missing or is not as aifx writes it.

    Raises CheckpointError if another version of aifx wrote it.
    """
    try:
        document = parse_json(read_file(run.kernels))
        devices, version = document["devices"].items(), document.get("schema_version")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if isinstance(version, int) and version != KERNELS_VERSION:
        what = f"another version of aifx wrote run {run.name}"
        why = f"{run.kernels} has format {version}; this version reads format {KERNELS_VERSION}"
        raise CheckpointError(what, why, "aifx train --run NAME    (a new run)")
    return {kind: [c for c in choices if isinstance(c, dict)] for kind, choices in devices if isinstance(choices, list)}


def write_kernel_choices(run: RunDirectory, devices: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    write_json(run.kernels, {"schema_version": KERNELS_VERSION, "devices": devices})
