"""A run that begins with a model version is the run that begins with the checkpoint from which that was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import model_runs
import pytest

import aifx
from aifx.checkpoint.manifest import read_manifest
from aifx.core.artifact import Artifact
from aifx.core.errors import CheckpointError, ConfigError, UsageError
from aifx.core.project import Project
from aifx.registry.versions import write_version
from aifx.runs.provenance import data_behind, read_provenance
from aifx.training import prepare

ADAPTERS = {"finetune.adapter": "lora", "lora.rank": 2}
TUNING = {
    "train.num_steps": 2,
    "train.global_batch_size": 2,
    "train.validate_every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 9,
}


def tune(project: Project, run: str, base: str, **settings: Any) -> None:
    values = TUNING | {"finetune.base": base} | {name.replace("__", "."): value for name, value in settings.items()}
    assert aifx.train(project.root, run, settings=values).status == "completed"


def version_of(project: Project, run: str, folder: Path) -> Artifact:
    folder.mkdir()
    return write_version(project.run(run), project, 2, folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = model_runs.make_project(tmp_path / "project", model_runs.TEXT)
    model_runs.make_run(project, "optimizer.ema_decay=0.9", name="whole")
    return project


def push(project: Project, run: str) -> str:
    return aifx.registry_push(run, "fox", project=project.root).digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param(ADAPTERS, marks=pytest.mark.representative("a run tuned from a model version")),
        {**ADAPTERS, "finetune.base_quantize": "int8"},
    ],
)
def test_the_weights_are_those_of_the_run(settings: dict[str, Any], project: Project, tmp_path: Path) -> None:
    base = "whole"
    if settings:  # adapters beside a run that trained adapters
        base = "near"
        lora = ("finetune.adapter=lora", "lora.rank=2", "lora.alpha=8")
        model_runs.make_run(project, *lora, name=base, base=project.run("whole"))
    digest = push(project, base)
    aifx.registry_promote("fox@v1", "production", project=project.root)
    tune(project, "by-run", f"{base}:1", **settings)
    opened = mock.Mock(wraps=prepare.open_named_base)
    with mock.patch.object(prepare, "open_named_base", opened):
        tune(project, "by-version", "fox@production", **settings)
    assert opened.call_count == 1  # a registry may be far away
    first, second = (read_manifest(project.run(run).checkpoints / "2") for run in ("by-run", "by-version"))
    assert first.state_digest == second.state_digest
    named = read_provenance(project.run("by-version"))["finetuned_from"]
    assert named["run"] == f"fox@{digest}"
    assert data_behind(project.run("by-version"), project) == list(named.get("data", ()))
    made = [version_of(project, run, tmp_path / run) for run in ("by-run", "by-version")]
    assert made[0].digest == made[1].digest
    with pytest.raises(UsageError, match="by-version"):
        aifx.registry_rm("fox@v1", project=project.root)
    # The run is not needed, and another meaning of the alias changes nothing.
    for run in ("whole", "near", "by-run"):
        shutil.rmtree(project.run(run).path, ignore_errors=True)
    push(project, "by-version")
    aifx.registry_promote("fox@v2", "production", project=project.root)
    shutil.rmtree(project.run("by-version").checkpoints / "2")
    tune(project, "by-version", "fox@production", **settings)
    assert read_manifest(project.run("by-version").checkpoints / "2").state_digest == first.state_digest
    assert aifx.evaluate(project.run("by-version").path).step in (1, 2)
    with pytest.raises(ConfigError, match="another configuration"):
        tune(project, "by-version", "fox@v2", **settings)


@pytest.mark.slow
def test_a_registry_that_is_away_stops_a_new_run_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push(project, "whole")
    tune(project, "first", "fox@v1", **ADAPTERS)
    shutil.move(project.root / "registry", tmp_path / "away")
    shutil.rmtree(project.run("first").checkpoints / "2")
    tune(project, "first", "fox@v1", **ADAPTERS)
    with pytest.raises(UsageError, match="fox"):
        tune(project, "second", "fox@v1", **ADAPTERS)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="run first needs the model fox@"):
        aifx.evaluate(project.run("first").path)


@pytest.mark.slow
def test_bases_that_are_none(project: Project) -> None:
    push(project, "whole")
    for base, error, message in (
        ("fox@v2", UsageError, "names no version"),
        ("fax@v1", UsageError, "no model 'fax'"),
        ("fox@", ConfigError, "is no base"),
        ("whole:last", ConfigError, "is no base"),
        ("whole@v1:3", ConfigError, "is no base"),
    ):
        with pytest.raises(error, match=message):
            tune(project, "none", base)
    with pytest.raises(UsageError, match="names no version"):
        aifx.config_check(settings={"finetune.base": "fox@v9"}, project=project.root)
    with pytest.raises(ConfigError, match=r"model\.rope_theta"):
        tune(project, "none", "fox@v1", model__rope_theta=7.0)
    tokens = ("data.tokenizer=bpe", "data.vocab_size=270")
    model_runs.make_run(project, *tokens, name="pairs")
    push(project, "pairs")
    with pytest.raises(ConfigError, match="the tokenizer is not that of model fox@") as refused:
        tune(project, "other", "fox@v2", data__tokenizer="bpe", data__vocab_size=265)
    named = refused.value.hint.split('"')[1]
    tune(project, "same", "fox@v2", data__tokenizer=named, data__vocab_size=270)
    assert not project.run("none").exists()
    assert json.loads((project.root / "registry/models/fox/ledger/00000001.json").read_text())["action"] == "push"
