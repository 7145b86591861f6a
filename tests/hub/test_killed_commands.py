"""Commands that make a run or a folder, killed before and after each change of a file, and asked for again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["import", "export", "orbax", "adapters", "average"])
def test_a_kill_at_each_change(
    tmp_path: Path, command: str, hub_models: Callable[[str], Path], record_property: Callable[[str, object], None]
) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    model = hub_models("llama-one-layer-one-kv-head" if command == "orbax" else "llama")
    program = [sys.executable, HERE / "killed_command.py", command, model, tmp_path]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kills = int(done.stdout.split()[-1])
    record_property("kills", kills)
    assert kills > 20
