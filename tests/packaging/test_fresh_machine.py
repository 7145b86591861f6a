"""`make demo`, shortened, from an unpacked copy with a home of its own and no uv: what a newcomer's machine does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_AN_ARCHIVE = (".git", ".venv*", "build", "dist", "demo", "wheelhouse", "*.egg-info", "__pycache__", ".*_cache")
PLAIN_PATH = ["/usr/local/bin", "/usr/bin", "/bin"]
SHORT = {
    "AIFX_TRAIN__NUM_STEPS": "30",
    "AIFX_CHECKPOINT__EVERY": "5",
    "AIFX_TRAIN__VALIDATE_EVERY": "15",
    "AIFX_EVAL__GATES": '["bits_per_byte <= 7"]',
}
SHORTEST = {"AIFX_TRAIN__NUM_STEPS": "5", "AIFX_EVAL__GATES": '["bits_per_byte <= 0.1"]'}


def make(target: str, folder: Path, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    ours = ("UV_", "AIFX_", "JAX_", "XLA_", "PYENV_", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS", "VENV", "DEMO")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    python = Path(getattr(sys, "_base_executable", sys.executable)).parent
    path = [folder for folder in [*PLAIN_PATH, str(python)] if not Path(folder, "uv").exists()]
    return subprocess.run(
        ["make", target],
        cwd=folder,
        env={**kept, "PATH": ":".join(path), "HOME": str(home), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.representative("the demo")
@pytest.mark.timeout(1500)
def test_demo_from_nothing_and_again(tmp_path: Path) -> None:
    folder, home = tmp_path / "aifx", tmp_path / "home"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_IN_AN_ARCHIVE), symlinks=True)
    home.mkdir()

    first = make("demo", folder, home, **SHORT)
    assert first.returncode == 0, first.stdout
    assert "Making .venv" in first.stdout
    assert "Exit code 75" in first.stdout
    assert "step 30 of 30" in first.stdout
    assert "bits_per_byte <= 7" in first.stdout
    assert "Next steps" in first.stdout
    assert (folder / "demo" / "runs" / "main" / "metrics.jsonl").read_text().count("\n") > 1

    again = make("demo", folder, home, **SHORT)
    assert again.returncode == 0, again.stdout
    assert "Making .venv" not in again.stdout
    assert "Continuing with" in again.stdout

    # A gate that the model misses is a verdict, and the demo's own.
    shutil.rmtree(folder / "demo")  # a run keeps the gates that it was trained with
    failed = make("demo", folder, home, **{**SHORT, **SHORTEST})
    assert failed.returncode != 0
    assert "Next steps" not in failed.stdout
