"""The TOML tables of this package, and the ids of findings across nodes, most of which fleet/compare.toml has."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import tomli

SILENT, NO_REPORT = "fleet.node.silent", "fleet.node.no_report"
BISECT = ("fleet.bisect.node", "fleet.bisect.link", "fleet.bisect.unclear")


@cache
def read_table(*path: str) -> dict[str, Any]:
    return tomli.loads(resources.files("aifx.health").joinpath(*path).read_text("utf-8"))


def across_ids() -> list[str]:
    """Return the ids of findings across nodes."""
    return [SILENT, NO_REPORT, *BISECT, *(fact["id"] for fact in read_table("fleet", "compare.toml")["fact"])]
