"""Generous limits for nodes and probes: the machine that runs the tests may be busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aifx.health import host, snapshot
from aifx.health.fleet import transports
from aifx.health.probes import disk, network

GENEROUS_S = 600.0
SHORTEST_S = 2.0
"""A limit of this or less is the subject of its test, and stays."""


@pytest.fixture(autouse=True)
def generous_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of nodes and probes only end a hang, unless a test sets its own."""
    within, ask = host.within, host.Host.ask

    def generous_within(limit_s: float, function: Callable[[], Any], what: str) -> Any:
        return within(GENEROUS_S, function, what)

    def generous_ask(self: host.Host, module: str, *arguments: str, name: str, limit_s: float) -> Any:
        limit_s = limit_s if limit_s <= SHORTEST_S else GENEROUS_S
        return ask(self, module, *arguments, name=name, limit_s=limit_s)

    monkeypatch.setattr(transports, "LIMITS_S", dict.fromkeys(transports.LIMITS_S, GENEROUS_S))
    monkeypatch.setattr(snapshot, "within", generous_within)
    monkeypatch.setattr(host.Host, "ask", generous_ask)
    monkeypatch.setattr(host, "READ_LIMIT_S", GENEROUS_S)
    monkeypatch.setattr(disk, "LIMIT_S", GENEROUS_S)
    monkeypatch.setattr(network, "NAME_LIMIT_S", GENEROUS_S)
