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

from aifx.core.errors import ConfigError
from aifx.parallel.checks import check_batch
from aifx.parallel.group import Group
from aifx.parallel.layout import abstract_layout, local_layout
from aifx.parallel.mesh import Degrees, Demand, check_demands

TINY = Path(__file__).parents[1] / "training" / "tiny.py"

PROGRAM = """
import json, sys
from pathlib import Path
import jax
from aifx.kinds import load_config
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.training.run import train

project = Project(Path.cwd())
for name, *settings in json.load(sys.stdin):
    settings = ["train.num_steps=6", "train.global_batch_size=8", "train.validate_every=3", *settings]
    try:
        result = train(project, load_config(project, settings, {}), name)
    except AifxError as e:
        document = {"what": e.what, "why": e.why, "hint": e.hint}
    else:
        document = {**result.document(), "devices": jax.device_count()}
    Path(f"{name}.json").write_text(json.dumps(document))
"""
ONE = "train.devices=1"
MUON = ("train.gradient_accumulation=2", "optimizer.kind=muon", "optimizer.ema_decay=0.9")
RUNS = [
    ["one", ONE],
    ["four"],
    ["one-muon", ONE, *MUON],
    ["four-muon", *MUON],
    ["odd", "train.global_batch_size=6"],
    ["fsdp", "mesh.fsdp=4"],
    ["three", "train.global_batch_size=6", "train.devices=3"],
]


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a process with four devices trained each of RUNS."""
    root = tmp_path_factory.mktemp("devices")
    (root / "aifx.toml").write_text('[task]\nkind = "tiny:TinyTask"\n')
    shutil.copy(TINY, root)
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=root,
        env={**os.environ, "XLA_FLAGS": flags},
        input=json.dumps(RUNS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


def document_of(root: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((root / f"{name}.json").read_text())
    return document


def records_of(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("one", "many"), [("one", "four"), ("one", "fsdp"), ("one-muon", "four-muon")])
def test_four_devices_train_as_one(on_four_devices: Path, one: str, many: str) -> None:
    for name in (one, many):
        assert document_of(on_four_devices, name)["devices"] == 4
    alone, together = (records_of(on_four_devices, name) for name in (one, many))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in together], [r[name] for r in alone], rtol=1e-4)
    assert len(together) == 6
    assert together[-1]["validation"]["loss"] == pytest.approx(alone[-1]["validation"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_batch_that_does_not_divide(on_four_devices: Path) -> None:
    error = document_of(on_four_devices, "odd")
    assert "among 4 devices" in error["what"]
    assert "--set train.global_batch_size=8" in error["hint"]
    assert "--set train.devices=3" in error["hint"]
    assert document_of(on_four_devices, "three")["status"] == "completed"


def test_hints_for_a_job_name_the_devices_of_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 processes with 2 devices each."""
    group = Group()
    group.size = 4
    monkeypatch.setattr("aifx.parallel.joining._current", group)
    layout = abstract_layout(8, "cpu", "cpu")
    with pytest.raises(ConfigError) as four:  # not 6 devices, which 4 processes cannot have
        check_batch(layout, 12, 1)
    assert four.value.hint == "--set train.global_batch_size=16, or --set train.devices=1"
    with pytest.raises(ConfigError) as none:
        check_batch(layout, 6, 1)
    assert none.value.hint == "--set train.global_batch_size=8"
    with pytest.raises(ConfigError, match="no process") as refused:
        check_demands(Degrees(data=8), [Demand("no process", 3, ("data", "fsdp", "tensor", "context"))])
    assert "train.devices" not in refused.value.hint


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"train\.devices = 99"):
        local_layout(99)
