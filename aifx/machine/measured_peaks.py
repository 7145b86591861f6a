"""The peaks that were measured on this machine: `aifx bench hardware` measures, kept beside the
catalogue's peaks (`aifx.machine.catalogue`), which no machine reaches. Needs no JAX.

A file for each machine and what it computes with, in `state_path()`:

    {"schema_version": 1, "host": ..., "hardware": {"device_kind", "platform", "cpu", "cores"},
     "rates": {"matmul.float32": {"rate": 1.9e11, "time": ..., "versions": {"jax": ...}}, "memory": ...}}

A rate is in operations or bytes a second, of one device (a CPU is one, with all cores that it may use), and only ever
rises: a later, slower measurement is a finding of `aifx doctor`, not a lower ceiling. Deleting the file starts again.

    matmul.DTYPE            products, the best size
    memory                  the triad, of arrays that no cache holds
    copy.to_device, copy.to_host
    KIND.N                  bus bandwidth of a collective among N devices: all_reduce.8
"""

from __future__ import annotations

import functools
import json
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aifx.core.digests import sha256_of
from aifx.core.json_files import write_json
from aifx.core.project import state_path
from aifx.machine.catalogue import Peak
from aifx.machine.cpu import cpu_of
from aifx.machine.host import versions


class Ceiling(BaseModel):
    """The best rate that was measured, when, and with which versions."""

    model_config = ConfigDict(frozen=True)

    rate: float = Field(gt=0)
    time: float
    versions: dict[str, str] = Field(default_factory=dict)


class Ceilings(BaseModel):
    """All of a machine with one kind of device; empty where nothing was measured."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    host: str
    hardware: dict[str, Any]
    rates: dict[str, Ceiling] = Field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        found = self.rates.get(name)
        return found.rate if found else None


def find_ceilings(device_kind: str, platform: str) -> Ceilings:
    """The ceilings of this machine with this kind of device; empty if none were measured or they cannot be read."""
    empty = _empty(device_kind, platform)
    try:
        return Ceilings.model_validate_json(_path(empty).read_bytes())
    except (OSError, ValidationError):
        return empty


def keep_ceilings(device_kind: str, platform: str, rates: Mapping[str, float]) -> Path:
    """Keep those that are new or higher; returns the file. Raises OSError if it cannot be written."""
    kept = find_ceilings(device_kind, platform)
    used = {name: version for name, version in versions().items() if name in ("jax", "jaxlib")}
    higher = {name: rate for name, rate in rates.items() if rate > (kept.rate(name) or 0.0)}
    new = {name: Ceiling(rate=rate, time=time.time(), versions=used) for name, rate in higher.items()}
    raised = kept.model_copy(update={"rates": {**kept.rates, **new}})
    path = _path(raised)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, raised.model_dump(mode="json"))
    return path


def measured_peak(device_kind: str, platform: str, num_devices: int, dtype: str) -> Peak | None:
    """The rate of products that `num_devices` devices of this machine's kind have reached; None if it is not known."""
    found = find_ceilings(device_kind, platform).rates.get(f"matmul.{dtype}")
    if found is None:
        return None
    count = 1 if platform == "cpu" else num_devices
    day = time.strftime("%Y-%m-%d", time.gmtime(found.time))
    return Peak(found.rate * count, f"{count} x {found.rate / 1e12:.4g} TFLOP/s {dtype}, measured here on {day}")


def _path(ceilings: Ceilings) -> Path:
    """The file of a host, since many share a home directory, and of its hardware, since it may have several kinds."""
    digest = sha256_of(json.dumps(ceilings.hardware, sort_keys=True))[:8]
    host = re.sub(r"[^\w.-]", "_", ceilings.host) or "host"
    return state_path() / "ceilings" / f"{host}-{digest}.json"


@functools.cache
def _empty(device_kind: str, platform: str) -> Ceilings:
    hardware = {"device_kind": device_kind, "platform": platform, **cpu_of()}
    return Ceilings(host=socket.gethostname(), hardware=hardware)
