"""A captured stress test. `aifx.health.stress.collect` runs one if `--stress` asks for it."""

from __future__ import annotations

from typing import Any

from aifx.core.facts import Absent, from_document
from aifx.health.host import CAPTURED, Host
from aifx.health.probing import probe


@probe("stress")
def collect(host: Host) -> Any:
    if host.is_live or not host.exists(f"/{CAPTURED}/stress.json"):
        return Absent("no stress test: aifx doctor --stress quick")
    return from_document(host.measure("stress", dict))
