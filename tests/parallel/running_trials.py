"""Run `mesh_trials.py` in a process of eight devices, and compare what meshes found."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Activations are rounded to 15 bits: those of each device along `tensor`, and other neighbours if a sum differs in its
# last bit. The first gradients of `lora_a` are of that size, and Adam makes as much of them as of others.
OF_INT8_NORMS, OF_INT8_CHANGES = 1e-5, 0.05


def run_trials(requests: dict[str, tuple[str, list[str], int]]) -> dict[str, Any]:
    """The findings of each request, in a process with eight devices."""
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


def changes_of(found: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The change of each array over all steps, by its name; averaged weights are below `ema`.

    Biases of keys are left out: the softmax ignores them, so that their gradients are nothing but rounding.
    """
    arrays = {name: np.frombuffer(base64.b64decode(text), np.float32) for name, text in found["changes"].items()}
    return {name: array for name, array in arrays.items() if not name.endswith("key_bias")}


def differences(many: dict[str, Any], one: dict[str, Any]) -> dict[str, float]:
    """The distance of each array's change from that on one device, as a share of it."""
    ours, theirs = changes_of(many), changes_of(one)
    assert ours.keys() == theirs.keys()
    norm = np.linalg.norm
    return {name: float(norm(ours[name] - theirs[name]) / max(norm(theirs[name]), 1e-30)) for name in theirs}


def check_equal(many: dict[str, Any], one: dict[str, Any], tolerance: float, of_norms: float = 1e-6) -> None:
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=tolerance)
    np.testing.assert_allclose(many["norms"][0], one["norms"][0], rtol=of_norms)
    np.testing.assert_allclose(many["evaluated"], one["evaluated"], rtol=tolerance)
    np.testing.assert_allclose(many["reference"], one["reference"], rtol=tolerance)
