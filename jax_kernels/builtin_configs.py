"""Winners that come with the package: common shapes, measured on devices of each kind that was at hand.

`benchmarks/ship_kernels.py` writes the tables, a file a kind of device. What is not in them was not measured.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax_kernels.implementations import Config, Device
from jax_kernels.op import Choice, Op, call_key

TABLES = Path(__file__).parent / "tables"


def builtin_choice(op: Op, call: Any, device: Device) -> Choice | None:
    """The winner for a call on such a device, as `Choices.measured` tells it."""
    return find_winner(_read(TABLES / f"{file_name(device)}.json"), op, call, device)


def file_name(device: Device) -> str:
    """The file name of a kind of device, in letters and digits: "gpu-nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", f"{device.platform} {device.kind}".lower()).strip("-")


@functools.cache
def _read(path: Path) -> dict[str, Choice]:
    if not path.exists():
        return {}
    winners = json.loads(path.read_text())["winners"]
    return {key: Choice.from_document(document) for key, document in winners.items()}


def find_winner(winners: Mapping[str, Choice], op: Op, call: Any, device: Device) -> Choice | None:
    """The winner for a call, otherwise that of the same call with the nearest batch size; None if neither can run.

    Args:
        winners: by `call_key`.
    """
    exact = winners.get(call_key(op.name, call))
    if exact is not None and op.unsupported_reason(exact, call, device) is None:
        return exact
    wanted = _fields(call_key(op.name, call))
    near: list[tuple[float, dict[str, int], Choice]] = []
    for key, choice in winners.items():
        fields = _fields(key)
        sizes = {name: fields[name] for name in call.batch_fields if name in fields}
        if {**wanted, **sizes} == fields:
            near.append((_distance(sizes, wanted), sizes, choice))
    for _, sizes, choice in sorted(near, key=lambda found: found[0]):
        implementation = op.implementations.get(choice.implementation)
        if implementation is not None and implementation.unsupported_reason(call, device) is None:
            config = _nearest_config(choice.config, implementation.configs(call, device))
            shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
            return replace(choice, config=config, reason=f"{choice.reason}, for {shape}")
    return None


@functools.lru_cache(maxsize=4096)
def _fields(key: str) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = json.loads(key)
    return fields


def _nearest_config(measured: Config, offered: Any) -> Config:
    """The one offered that is nearest to what was measured, since some sizes of blocks depend on the batch."""
    alike = [config for config in offered if [name for name, _ in config] == [name for name, _ in measured]]
    nearest: Config = min(alike or offered[:1], key=lambda config: _distance(dict(config), dict(measured)))
    return nearest


def _distance(a: Mapping[str, int], b: Mapping[str, Any]) -> float:
    """In factors of two; 0 for equal values."""
    return sum(abs(math.log2(max(size, 0.5) / max(b[name], 0.5))) for name, size in a.items() if name in b)
