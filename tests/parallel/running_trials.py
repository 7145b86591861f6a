"""Run `mesh_trials.py` in a process of eight devices, and compare what meshes found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def run_trials(requests: dict[str, tuple[str, list[str], int]]) -> dict[str, Any]:
    """What each request found, in a process with eight devices."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mesh_trials.py"))],
        env={**os.environ, "XLA_FLAGS": flags},
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_equal(many: dict[str, Any], one: dict[str, Any], tolerance: float, of_norms: float = 1e-6) -> None:
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=tolerance)
    np.testing.assert_allclose(many["norms"][0], one["norms"][0], rtol=of_norms)
    np.testing.assert_allclose(many["evaluated"], one["evaluated"], rtol=tolerance)
    np.testing.assert_allclose(many["reference"], one["reference"], rtol=tolerance)
