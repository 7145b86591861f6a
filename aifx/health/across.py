"""Findings across nodes: their ids, and the facts by which nodes are compared, as fleet/compare.toml has them."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import tomli

SILENT, NO_REPORT = "fleet.node.silent", "fleet.node.no_report"
BISECT = ("fleet.bisect.node", "fleet.bisect.link", "fleet.bisect.unclear")


@cache
def fact_documents() -> tuple[dict[str, Any], ...]:
    """The tables of fleet/compare.toml."""
    text = resources.files("aifx.health").joinpath("fleet", "compare.toml").read_text("utf-8")
    return tuple(tomli.loads(text)["fact"])


def across_ids() -> list[str]:
    """The ids of findings across nodes."""
    return [SILENT, NO_REPORT, *BISECT, *(document["id"] for document in fact_documents())]
