"""The real `aifx registry` inside this process, and the bytes that its registries have."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import inprocess


def run(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `aifx registry ARGS` in a folder, as ann."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIFX_")}
    own = {"AIFX_CACHE_DIR": str(folder / "cache"), "AIFX_ACTOR": "ann", **environ}
    return inprocess.run(["registry", *args], folder, {**kept, **own})


def answer(folder: Path, *args: str, code: int = 0, **environ: str) -> dict[str, Any]:
    """The document that `aifx registry ARGS --json` prints."""
    done = run(folder, *args, "--json", **environ)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    return found


def content(folder: Path, *roots: str) -> dict[str, bytes]:
    """The bytes of each file below some folders of a folder, by path."""
    files = (path for root in roots or ("registry",) for path in (folder / root).rglob("*"))
    return {str(path): path.read_bytes() for path in files if path.is_file()}
