"""A writer of conversations on a machine that lacks something, for a process of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aifx.core.errors import EnvironmentFault


class FaultyWriter:
    template = SimpleNamespace(name="faulty.jinja")

    def prompt_text(self, messages: Any, place: str, *, tools: Any) -> str:
        raise EnvironmentFault(f"{place}: no room", "the disk is full", "df")
