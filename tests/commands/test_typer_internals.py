"""Private parts of typer and rich are used in one file each, and are those of the versions that it was written for."""

from __future__ import annotations

import ast
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from aifx import commands

ROOM = Path(commands.__file__).parent


@pytest.mark.parametrize(
    ("package", "series", "file"), [("typer", "0.29.", "typer_internals.py"), ("rich", "15.", "live.py")]
)
def test_the_version_is_the_one_that_the_file_was_written_for(package: str, series: str, file: str) -> None:
    found = version(package)
    assert found.startswith(series), f"compare console/{file} with the source of {package} {found}"
    assert f"{package} {series.rstrip('.')} " in (ROOM / "console" / file).read_text().replace("\n", " ")


def test_no_other_file_uses_private_parts_of_typer_or_rich() -> None:
    private = re.compile(r"typer\.(core|main|_\w+|rich_utils|models|completion)|rich\.(live_render|_\w+)|click.*")
    for path in ROOM.rglob("*.py"):
        if path.name in ("typer_internals.py", "live.py"):
            continue
        tree = ast.parse(path.read_text())
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        modules += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert not [name for name in modules if private.fullmatch(name)], path
