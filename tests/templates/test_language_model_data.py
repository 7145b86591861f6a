"""The data set of the language-model template: the recipe that makes it, and a run that trains on it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import inprocess
import pytest
import tomli

ROOT = Path(__file__).parents[2]
TINY = ["model.num_layers=1", "model.embed_dim=16", "model.num_heads=2", "model.mlp_dim=16", "data.seq_len=64"]
STEPS = ["decontaminate", "split", "dedupe", "add"]


def data_commands(text: str) -> list[list[str]]:
    """The arguments of the `aifx data` commands of a console block or a script."""
    lines = (line.removeprefix("$ ") for line in text.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("aifx data ")]


@pytest.mark.slow
def test_a_run_trains_on_what_the_readme_makes(tmp_path: Path) -> None:
    environ = {**os.environ, "AIFX_CACHE_DIR": str(tmp_path / "cache")}

    def aifx(*args: str, cwd: Path = tmp_path / "book") -> CompletedProcess[str]:
        done = inprocess.run(args, cwd, environ)
        assert done.returncode == 0, done.stderr
        return done

    aifx("init", "book", "--template", "language-model", "--yes", cwd=tmp_path)
    script, toml = tmp_path / "book/data/prepare.sh", tmp_path / "book/aifx.toml"
    commands = data_commands(script.read_text())
    assert commands == [["data", "make", "corpus"]]
    assert "dataset" not in tomli.loads(toml.read_text())["data"]
    assert prepare(script, tmp_path) == commands
    assert tomli.loads(toml.read_text())["data"]["dataset"] == "corpus"
    (made,) = json.loads(aifx(*commands[0], "--json").stdout)["data_sets"]
    assert [step["step"] for step in made["steps"]] == STEPS[::-1]
    first, *_, last = made["steps"]
    assert first["rows"] == 135  # the chapters and the epilogue
    assert first["rows"] - last["rows"] == sum(step["dropped"] for step in made["steps"])

    aifx("config", "check")
    settings = [f"--set={setting}" for setting in (*TINY, "train.num_steps=2", "train.validate_every=2")]
    trained = aifx("train", *settings)
    assert "near-duplicates" not in trained.stderr
    dataset = json.loads((tmp_path / "book/runs/main/provenance.json").read_text())["dataset"]
    assert dataset["reference"].startswith(made["reference"])
    steps, reference = [], dataset["reference"]
    while reference:
        name, _, digest = reference.partition("@")
        manifest = json.loads((tmp_path / "book/datasets" / name / digest[:12] / "manifest.json").read_text())
        assert manifest["digest"] == digest
        step = manifest["content"]["step"]
        steps += [one["name"] for one in reversed(step["settings"].get("steps", [step]))]  # `make` takes several in one pass
        reference = next(iter(manifest["content"]["parents"]), None)
    assert steps == STEPS
    measured = json.loads(aifx("eval", "--set", "eval.gates=[]", "--json").stdout)
    assert 100_000 < measured["metrics"]["bytes"] < 200_000  # about a tenth
    again = aifx("train", *settings, "--json")
    assert json.loads(again.stdout)["status"] == "completed"


def prepare(script: Path, folder: Path) -> list[list[str]]:
    """The arguments of each `aifx` that the script runs, by an `aifx` that writes them down."""
    program = folder / "bin/aifx"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -IS\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", script], env=environ, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_demo_runs_the_script() -> None:
    assert "run sh data/prepare.sh" in (ROOT / "scripts/demo.sh").read_text()
