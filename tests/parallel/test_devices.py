"""Several devices, made of the CPU: the same losses as on one, each with its part of the batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aifx.errors import ConfigError
from aifx.parallel import make_mesh

TINY = Path(__file__).parents[1] / "train" / "tiny.py"

PROGRAM = """
import json, sys
from pathlib import Path
import jax
from aifx.config import load_config
from aifx.errors import AifxError
from aifx.project import Project
from aifx.train import train

project = Project(Path.cwd())
settings = ["train.num_steps=6", "train.global_batch_size=8", "train.validate_every=3", *sys.argv[2:]]
try:
    result = train(project, load_config(project, settings, {}), sys.argv[1])
except AifxError as e:
    print(json.dumps({"what": e.what, "why": e.why, "hint": e.hint}))
else:
    print(json.dumps({**result.document(), "devices": jax.device_count()}))
"""


@pytest.fixture
def on_devices(tmp_path: Path) -> Any:
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "tiny:TinyTask"\n')
    shutil.copy(TINY, tmp_path)

    def run(count: int, name: str, *settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name, *settings],
            cwd=tmp_path,
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        metrics = tmp_path / "runs" / name / "metrics.jsonl"
        records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return json.loads(done.stdout.splitlines()[-1]), records

    return run


@pytest.mark.parametrize("settings", [[], ["train.gradient_accumulation=2", "optimizer.kind=muon"]])
def test_four_devices_train_as_one(on_devices: Any, settings: list[str]) -> None:
    one, alone = on_devices(4, "one", "train.devices=1", *settings)
    four, together = on_devices(4, "four", *settings)
    assert one["devices"] == four["devices"] == 4
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in together], [r[name] for r in alone], rtol=1e-4)
    assert together[-1]["validation"]["loss"] == pytest.approx(alone[-1]["validation"]["loss"], rel=1e-4)


def test_a_batch_that_does_not_divide(on_devices: Any) -> None:
    error, _ = on_devices(4, "odd", "train.global_batch_size=6")
    assert "cannot be divided among 4 devices" in error["what"]
    assert "--set train.global_batch_size=8" in error["hint"]
    assert "--set train.devices=3" in error["hint"]
    done, _ = on_devices(4, "odd", "train.global_batch_size=6", "train.devices=3")
    assert done["status"] == "completed"


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"train\.devices = 99"):
        make_mesh(99)
