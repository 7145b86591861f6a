"""`aifx plan` as people and programs run it. Each call starts the process that traces and compiles."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import inprocess
import pytest
from published_schemas import check_document

from aifx.core.project import Project
from aifx.machine.present import can_compile_for_tpus

LARGE = ("--set", "model.embed_dim=16384", "--set", "model.mlp_dim=32768", "--set", "model.num_heads=128")
"""A model of 5 billion parameters, whose state takes 87 GB."""


def aifx(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return inprocess.run(arguments, project.root, dict(os.environ))


def answer(project: Project, *arguments: str) -> dict[str, Any]:
    done = aifx(project, "plan", *arguments, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.slow
def test_this_machine_is_planned_by_compiling(project: Project) -> None:
    (plan,) = answer(project)["plans"]
    assert plan["fits"]
    assert (plan["not_compiled"], plan["unit"], plan["num_parameters"]) == ("", "tokens", 300 * 32 + 2 * 10304 + 32)
    assert plan["memory"]["total"]["basis"] == "compiled"
    assert plan["memory"]["process"]["basis"] == "measured"
    assert plan["memory"]["activations"]["source"].startswith("what the backward pass")
    assert "estimate:" not in json.dumps(plan)
    assert plan["bytes_per_step"]["basis"] == "compiled"
    times = [figure for figure in plan["time"].values() if isinstance(figure, dict)]
    assert {figure["basis"] for figure in times} == {"estimated"}
    assert all(figure["source"] for figure in (*times, *filter(None, plan["memory"].values())))
    assert plan["time"]["bound"] in ("products", "memory")
    assert plan["links"] == []


@pytest.mark.parametrize(("base", "why"), [("fox@v2", "no model 'fox'"), ("wide", "no run 'wide'")])
def test_a_base_that_is_missing_is_refused(project: Project, base: str, why: str) -> None:
    done = aifx(project, "plan", "--no-compile", "--set", f"finetune.base={base}")
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_several_kinds_of_hardware_make_a_table(project: Project) -> None:
    """One of them cannot share the batch, which doesn't hide the others."""
    done = aifx(project, "plan", "--no-compile", "--hardware", "a100x8", "--hardware", "h100x3", "--price", "2")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["hardware", "fits", "memory"]
    assert [row.split()[:2] for row in rows] == [["a100x8", "yes"], ["h100x3", "-"]]
    assert "among 3 devices" in done.stderr


@pytest.mark.representative("a plan")
def test_a_model_that_fits_no_device_is_sharded_over_several(project: Project) -> None:
    """One device is too small, and the smallest machine that would do is named. Eight divide the state."""
    hardware = ("--hardware", "h100", "--hardware", "h100x8")
    done = aifx(project, "plan", "--no-compile", *hardware, "--fit", *LARGE)
    assert done.returncode == 0, done.stderr
    _, *rows = done.stdout.splitlines()
    assert [row.split()[:2] for row in rows[:2]] == [["h100", "NO"], ["h100x8", "yes"]]
    assert re.search("h100: nothing fits.* v5p-8", done.stderr)
    lines = done.stdout[done.stdout.index("# aifx.toml, for h100x8") :].splitlines()
    mesh = dict(line.split(" = ") for line in lines[2 : lines.index("[train]")])
    assert lines[1] == "[mesh]"
    assert math.prod(map(int, mesh.values())) == 8
    assert "data" not in mesh


@pytest.mark.slow
def test_fit_prints_lines_for_the_configuration(project: Project) -> None:
    done = aifx(project, "plan", "--no-compile", "--hardware", "h100x3", "--fit")
    assert done.returncode == 0, done.stderr
    lines = done.stdout[done.stdout.index("# aifx.toml") :].splitlines()
    assert lines[1] == "[mesh]"
    assert lines[2] in ("data = 3", "fsdp = 3")
    assert "global_batch_size = 9" in lines
    assert "gradient_accumulation = 1" in lines


@pytest.mark.slow
def test_a_run_keeps_its_plan_and_shows_what_was_predicted_and_measured(project: Project) -> None:
    (project.root / "data.txt").write_text(
        "It was the whiteness of the whale that above all things appalled me. " * 300
    )
    settings = ("data.train=['data.txt']", "train.num_steps=3", "train.validate_every=0")
    trained = aifx(project, "train", *(word for setting in settings for word in ("--set", setting)))
    assert trained.returncode == 0, trained.stderr
    before = aifx(project, "runs", "show", "main")
    assert "aifx plan --run main" in before.stdout, before.stderr
    done = aifx(project, "plan", "--run", "main", "--no-compile")
    assert done.returncode == 0, done.stderr
    run = project.run("main")
    check_document("files/plan", json.loads(run.plan.read_text()))
    plan = json.loads(run.plan.read_text())["plan"]
    printed = json.loads(aifx(project, "runs", "show", "main", "--json").stdout)
    found = {one["quantity"]: one for one in printed["predictions"]}
    assert list(found) == ["step_time_s", "units_per_s", "mfu", "memory_bytes"]
    assert all(one["measured"] > 0 for one in found.values())
    assert found["step_time_s"]["predicted"] == plan["time"]["step_s"]["value"]
    assert found["memory_bytes"]["predicted"] == plan["memory"]["total"]["value"]


@pytest.mark.slow
def test_training_without_enough_memory_names_settings_that_need_less(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")

    (project.root / "data.txt").write_text("It was the whiteness of the whale that above all appalled me. " * 300)
    monkeypatch.setattr("aifx.training.run.Loop.run", run)
    done = aifx(project, "train", "--set", "data.train=['data.txt']", "--set", "train.num_steps=3")
    assert done.returncode == 2
    assert "out of memory" in done.stderr
    hint = next(line for line in done.stderr.splitlines() if line.startswith("hint: aifx train --run main --set "))
    monkeypatch.undo()
    changed = hint.partition("--run main ")[2].split()
    assert any(word.startswith(("train.gradient_accumulation=", "model.remat=")) for word in changed)
    settings = ["--set", "data.train=['data.txt']", "--set", "train.num_steps=3", "--set", "train.validate_every=0"]
    again = aifx(project, "train", "--run", "other", *settings, *changed)
    assert again.returncode == 0, again.stderr


def test_a_run_is_planned_as_it_is(project: Project) -> None:
    done = aifx(project, "plan", "--run", "main", "--fit")
    assert done.returncode == 2
    assert re.search("--run .*--set, --fit .*--hardware", done.stderr)


def test_unknown_hardware_fails_before_anything_starts(project: Project) -> None:
    done = aifx(project, "plan", "--hardware", "h10x8")
    assert done.returncode == 2
    assert "did you mean 'h100x8'" in done.stderr
    listed = aifx(project, "plan", "--list")
    assert {"this", "h100x8", "v5e-256"} < {line.split()[0] for line in listed.stdout.splitlines()}
    document = json.loads(aifx(project, "plan", "--list", "--json").stdout)
    assert {"name": "v5p-512", "chip": "TPU v5p", "num_chips": 256} in document["hardware"]


def test_outside_a_project(tmp_path: Path) -> None:
    done = inprocess.run(["plan"], tmp_path, dict(os.environ))
    assert done.returncode == 2
    assert "aifx init" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(can_compile_for_tpus(), reason="libtpu is installed")
def test_without_a_compiler_it_counts_and_says_how_to_install_one(project: Project) -> None:
    (plan,) = answer(project, "--hardware", "v5e-1")["plans"]
    assert "pip install 'libtpu" in plan["not_compiled"]
    assert plan["memory"]["total"]["basis"] == "counted"
    assert plan["bytes_per_step"]["basis"] == "estimated"


@pytest.mark.slow
@pytest.mark.compilers
@pytest.mark.parametrize("hardware", ["h100x8", "v5e-8"])
def test_absent_hardware_is_planned_by_compiling(project: Project, hardware: str) -> None:
    (plan,) = answer(project, "--hardware", hardware)["plans"]
    assert plan["not_compiled"] == ""
    assert plan["memory"]["total"]["basis"] == "compiled"
    assert plan["time"]["exposed_s"]["value"] > 0
    assert {use["devices"] for use in plan["links"]} == {8}
