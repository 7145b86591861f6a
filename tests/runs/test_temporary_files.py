"""Temporary files that a killed process leaves beside a file that it was replacing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from aifx.core.files import remove_temporary, replace_file


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """One that a living process is writing stays: it holds a lock."""
    program = """
import os, signal, sys
from pathlib import Path
from aifx.core import files
files.os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
files.replace_file(Path(sys.argv[1]), b"{}")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "kernels.json")], check=False)
    (killed,) = tmp_path.iterdir()
    assert killed.name.startswith(".kernels.json.")
    (tmp_path / ".mine.tmp").write_text("a file of the user's")
    seen: list[list[str]] = []
    real = os.replace

    def replace(*args: Any, **kwargs: Any) -> None:
        remove_temporary(tmp_path)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        real(*args, **kwargs)

    with mock.patch.object(os, "replace", replace):
        replace_file(tmp_path / "config.toml", b"x")
    (during,) = seen
    assert killed.name not in during
    assert len(during) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "config.toml"]
