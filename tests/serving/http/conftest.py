"""Servers of the toy engine, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_server import TOOLS_TEMPLATE, Served

from aifx.data.chat.template import CHATML


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start a server with settings; it ends with the test."""
    started: list[Served] = []

    def start(template: str = CHATML, key: str = "", **settings: Any) -> Served:
        started.append(Served(tmp_path, template, key, **settings))
        return started[-1]

    yield start
    for served in started:
        served.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of a module that change nothing of it."""
    one = Served(tmp_path_factory.mktemp("served"), TOOLS_TEMPLATE)
    yield one
    one.close()
