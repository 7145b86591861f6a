"""Adapters as PEFT reads them, and merged into the weights: stored logits of PEFT, with their origin beside them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import inprocess
import numpy as np
import peer_models
import pytest
from adapter_runs import logits_of, make_adapter_run
from safetensors.numpy import load_file

import aifx
from aifx.core.errors import UsageError
from aifx.hub.exporting import export_model, open_export
from aifx.hub.importing import import_model
from aifx.hub.peft import base_source, export_adapter
from aifx.loading.restore import restore_run
from aifx.registry.versions import open_named_base

STORED = Path(__file__).with_name("stored_adapter_logits.npz")
QUICK = ("llama",)
SLOW = [name for name in peer_models.FIXED if name not in QUICK]


@pytest.fixture
def adapted(hub_models, empty_project):
    """A function from the name of a case to a run with adapters for its model."""

    def make(name, *settings):
        base = empty_project.run(import_model(str(hub_models(name)), empty_project, name="base").run)
        return make_adapter_run(empty_project, base, *settings)

    return make


@pytest.mark.representative("adapters in and out")
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_logits_are_those_of_peft_and_merging_keeps_them(name, adapted, empty_project, tmp_path):
    run = adapted(name)
    trained = restore_run(run, empty_project)
    got = logits_of(trained)
    np.testing.assert_allclose(got[:, peer_models.KEPT], np.load(STORED)[name], atol=5e-4)
    made = export_model(tmp_path / "merged", run, empty_project, merge=True)
    assert made.merged.passed
    card = (tmp_path / "merged/README.md").read_text()
    stored = load_file(tmp_path / "merged/model.safetensors")
    assert f"| parameters | {sum(array.size for array in stored.values()):,} |" in card
    assert 0 < made.merged.bound < 1e-3 * made.merged.largest_logit
    merged = import_model(str(tmp_path / "merged"), empty_project, name="again")
    again = logits_of(restore_run(empty_project.run(merged.run), empty_project))
    np.testing.assert_allclose(again, got, atol=5e-4)
    assert np.abs(again - logits_of(restore_run(empty_project.run("base"), empty_project))).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets", "modules"),
    [
        ("llama", ["query", "mlp"], {"self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("gpt2", ["attention"], {"attn.c_attn", "attn.c_proj"}),
        ("phi3", ["value", "up"], {"self_attn.qkv_proj", "mlp.gate_up_proj"}),
    ],
)
def test_an_adapter_folder_adds_to_each_tensor_what_merging_adds(
    name, targets, modules, adapted, empty_project, tmp_path
):
    """By PEFT's formula, from the files alone."""
    run = adapted(name, f"lora.targets={json.dumps(targets)}", "lora.alpha=3")
    export_adapter(tmp_path / "adapter", run, empty_project)
    export_model(tmp_path / "merged", run, empty_project, merge=True)
    export_model(tmp_path / "base", empty_project.run("base"), empty_project)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert set(config["target_modules"]) == modules
    assert config["base_model_name_or_path"].endswith(name)
    assert config["fan_in_fan_out"] == (name == "gpt2")
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    base, merged = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "merged"))
    changed = {key for key in base if not np.array_equal(base[key], merged[key])}
    assert {re.sub(r"^base_model\.model\.(.*)\.lora_[AB]\.weight$", r"\1.weight", key) for key in adapter} == changed
    for key in changed:
        module = key.removesuffix(".weight")
        a, b = (adapter[f"base_model.model.{module}.lora_{which}.weight"] for which in "AB")
        short = ".".join(module.split(".")[-2:])
        rank, alpha = config["rank_pattern"].get(short, config["r"]), config["alpha_pattern"].get(short, 3)
        assert a.shape[0] == rank == b.shape[1]
        delta = alpha / rank * (b @ a)
        np.testing.assert_allclose(base[key] + (delta.T if name == "gpt2" else delta), merged[key], atol=1e-5)


def test_adapters_of_and_on_model_versions_name_what_the_base_was_imported_from(
    adapted, empty_project, tmp_path, monkeypatch
):
    monkeypatch.chdir(empty_project.root)
    run = adapted("llama")
    for name, model in (("base", "whole"), ("adapted", "fox")):
        aifx.registry_push(name, model)
    aifx.export_model("fox@v1", tmp_path / "adapter", format="peft")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./llama"  # paths of a machine stay on it
    export = open_export(run, empty_project, None, None)
    for reference, expected in (("whole@v1", "./llama"), ("fox@v1", None)):  # fox has adapters: it is no imported model
        base = open_named_base(reference, empty_project)[1].document()
        manifest = replace(export.manifest, run={**export.manifest.run, "base": base})
        assert base_source(replace(export, manifest=manifest)) == expected


@pytest.mark.slow
def test_the_command(adapted, empty_project, tmp_path):
    adapted("llama", "finetune.base_quantize=int8")

    def export(*arguments):
        return inprocess.run(["export", *arguments], empty_project.root, os.environ)

    refused = export(str(tmp_path / "x"), "--run", "adapted")
    assert refused.returncode == 2
    assert "--merge" in refused.stderr
    assert "--format peft" in refused.stderr
    merged = export(str(tmp_path / "merged"), "--run", "adapted", "--merge", "--dtype", "bfloat16", "--json")
    assert merged.returncode == 0, merged.stderr
    document = json.loads(merged.stdout)
    assert document["merged"]["largest_difference"] <= document["merged"]["bound"]
    made = export(str(tmp_path / "peft"), "--run", "adapted", "--format", "peft")
    assert made.returncode == 0, made.stderr
    card, stored = (tmp_path / "peft/README.md").read_text(), load_file(tmp_path / "peft/adapter_model.safetensors")
    assert "library_name: peft" in card
    assert f"| parameters | {sum(array.size for array in stored.values()):,} |" in card
    again = export(str(tmp_path / "merged"), "--run", "adapted", "--merge", "--dtype", "bfloat16", "--json")
    assert json.loads(again.stdout) == {**document, "is_new": False}
    for arguments in (["--run", "base", "--merge"], ["--run", "base", "--format", "peft"]):
        assert "has no adapters" in export(str(tmp_path / "y"), *arguments).stderr
    with pytest.raises(UsageError, match="exists already"):
        export_adapter(tmp_path / "merged", empty_project.run("adapted"), empty_project)


def test_asked_again_it_says_that_the_adapter_is_there_and_takes_no_other(adapted, empty_project, tmp_path):
    adapted("llama")

    def export(*arguments, code=0):
        command = ["export", str(tmp_path / "peft"), "--run", "adapted", *arguments]
        done = inprocess.run(command, empty_project.root, os.environ)
        assert done.returncode == code, done.stderr
        return done.stdout

    first = json.loads(export("--format", "peft", "--json"))
    assert json.loads(export("--format", "peft", "--json")) == {**first, "is_new": False}
    assert "already" in export("--format", "peft")
    for other in (["--format", "peft", "--dtype", "bfloat16"], ["--format", "hf", "--merge"]):
        error = json.loads(export(*other, "--json", code=2))["error"]
        assert error["hint"] == f"aifx export {tmp_path / 'peft'}-2"
        assert other[-1].removeprefix("--").replace("bfloat16", "dtype") in error["why"]


@pytest.mark.slow
def test_a_merge_beyond_its_bound_exits_1(adapted, empty_project, tmp_path, monkeypatch):
    adapted("llama")
    monkeypatch.setattr("aifx.hub.comparison.BOUND", 0.0)
    monkeypatch.setattr("aifx.hub.comparison.ROUNDINGS", 0)
    done = inprocess.run(
        ["export", str(tmp_path / "out"), "--run", "adapted", "--merge"], empty_project.root, os.environ
    )
    assert done.returncode == 1, done.stderr
    assert "merged logits" in done.stdout
