"""Nodes may be slow to answer: the machine that runs the tests may be busy."""

from __future__ import annotations

import pytest

from aifx.health.fleet import transports


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes have ten minutes to answer, unless a test says otherwise with --timeout."""
    monkeypatch.setattr(transports, "LIMITS_S", dict.fromkeys(transports.LIMITS_S, 600.0))
