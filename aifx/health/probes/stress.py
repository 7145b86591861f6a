"""A captured stress test. `aifx.health.stress.collect` runs one if `--stress` asks for it."""

from __future__ import annotations

from typing import Any

from aifx.core.facts import Absent, from_document
from aifx.health.host import CAPTURED, Host
from aifx.health.probes import probe

NOT_ASKED = Absent("no stress test: aifx doctor --stress quick")


@probe("stress")
def collect(host: Host) -> dict[str, Any]:
    if host.is_live or not host.exists(f"/{CAPTURED}/stress.json"):
        return {"stress": NOT_ASKED}
    return {"stress": from_document(host.measure("stress", dict))}
