"""Winners that come with the package: common shapes, measured on devices of each kind that was at hand.

`benchmarks/ship_kernels.py` writes the tables, a file a kind of device. What is not in them was not measured.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from jax_kernels.implementations import Device
from jax_kernels.nearest import find_winner
from jax_kernels.op import Choice, Op

TABLES = Path(__file__).parent / "tables"


def builtin_choice(op: Op, call: Any, device: Device) -> Choice | None:
    """The winner for a call on such a device, as `Choices.measured` tells it."""
    return find_winner(_read(TABLES / f"{file_name(device)}.json"), op, call, device)


def file_name(device: Device) -> str:
    """Of a kind of device, in letters and digits: "gpu-nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", f"{device.platform} {device.kind}".lower()).strip("-")


@functools.cache
def _read(path: Path) -> dict[str, Choice]:
    if not path.exists():
        return {}
    winners = json.loads(path.read_text())["winners"]
    return {key: Choice.from_document(document) for key, document in winners.items()}
