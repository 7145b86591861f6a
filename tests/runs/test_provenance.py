from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aifx.runs.provenance import differences, flags, git_state, provenance

LIMIT_S = 120.0
"""Only ends a hang."""


@dataclass(frozen=True)
class Device:
    """The fields of `jax.Device` that provenance reads."""

    platform: str = "cpu"
    device_kind: str = "cpu"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "aifx.toml").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_commit_and_dirtiness(repository: Path) -> None:
    state = git_state(repository, LIMIT_S)
    assert state is not None
    assert len(state["commit"]) == 40
    assert (state["branch"], state["dirty"]) == ("trunk", False)
    (repository / "runs" / "main").mkdir(parents=True)
    (repository / "runs" / "main" / "metrics.jsonl").write_text("{}")
    for written in ("bench/main/20261125T141502-3f2a9c1d.json", ".bench-x2k/bench/metrics.jsonl"):
        (repository / written).parent.mkdir(parents=True)
        (repository / written).write_text("{}")
    assert git_state(repository, LIMIT_S) == state  # training and measuring themselves make nothing dirty
    (repository / "bench" / "mine.py").write_text("")
    assert git_state(repository, LIMIT_S) == {**state, "dirty": True}
    (repository / "bench" / "mine.py").unlink()
    (repository / "aifx.toml").write_text("[train]")
    assert git_state(repository, LIMIT_S) == {**state, "dirty": True}


def test_no_repository_no_git_no_time(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state(outside, LIMIT_S) is None
    (outside / "git").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    (outside / "git").chmod(0o700)
    monkeypatch.setenv("PATH", str(outside))
    assert git_state(repository, timeout_s=0.1) is None
    (outside / "git").unlink()
    assert git_state(repository, LIMIT_S) is None


def test_secrets_stay_out() -> None:
    environ = {
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=false",
        "JAX_PLATFORMS": "cpu",
        "JAX_API_TOKEN": "hunter2",
        "WANDB_API_KEY": "hunter2",
        "HOME": "/root",
        "JAX_COMPILATION_CACHE_DIR": "https://me:hunter2@example.org/cache",
    }
    recorded = flags(environ)
    assert set(recorded) == {"XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"}
    assert "hunter2" not in json.dumps(recorded)


def test_document(tmp_path: Path) -> None:
    doc = provenance(tmp_path, data_digest="abc", devices=[Device(), Device()])
    json.dumps(doc)
    assert doc["data_digest"] == "abc"
    assert doc["versions"]["python"] == sys.version.split()[0]
    assert {"aifx", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint"} <= doc["versions"].keys()
    assert doc["hardware"]["num_devices"] == 2
    assert doc["hardware"]["cores"] >= 1
    assert doc["command"] == sys.argv


def changed(doc: dict[str, Any], part: str, key: str, value: Any) -> dict[str, Any]:
    new = copy.deepcopy(doc)
    new[part][key] = value
    return new


def test_what_bits_rest_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # which the tests set
    doc = provenance(tmp_path, data_digest="a" * 64, devices=[Device()])
    assert differences(doc, copy.deepcopy(doc)) == []
    assert [str(d) for d in differences(doc, changed(doc, "versions", "jax", "9.9"))] == [
        f"jax: {doc['versions']['jax']} -> 9.9"
    ]
    assert differences(doc, changed(doc, "versions", "tokenizers", "9.9")) == []
    assert [d.name for d in differences(doc, changed(doc, "hardware", "cores", 99))] == ["cores"]
    assert [d.name for d in differences(doc, changed(doc, "hardware", "device_kind", "TPU v5e"))] == ["device_kind"]
    assert differences(doc, changed(doc, "hardware", "host", "elsewhere")) == []
    assert [str(d) for d in differences(doc, changed(doc, "environment", "XLA_FLAGS", "--x"))] == [
        "XLA_FLAGS: unset -> --x"
    ]
    assert differences(doc, changed(doc, "environment", "JAX_COMPILATION_CACHE_DIR", "/x")) == []
    assert [d.name for d in differences(doc, {**doc, "data_digest": "b" * 64})] == ["data_digest"]
    assert differences({}, doc) != []


def test_on_an_accelerator_the_host_does_not_matter(tmp_path: Path) -> None:
    doc = provenance(tmp_path, data_digest="a", devices=[Device("gpu", "NVIDIA H100")])
    assert differences(doc, changed(doc, "hardware", "cores", 99)) == []


def test_nothing_heavy_is_imported() -> None:
    heavy = "any(m in sys.modules for m in ('jax', 'orbax', 'numpy'))"
    code = f"import sys, aifx.runs.provenance, aifx.runs.status, aifx.checkpoint.manifest; sys.exit({heavy})"
    subprocess.run([sys.executable, "-c", code], check=True)
