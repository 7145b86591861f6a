"""The data set of the language-model template: its README's commands, in their order, and a run that trains on it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from subprocess import CompletedProcess

import inprocess

ROOT = Path(__file__).parents[2]
TINY = ["model.num_layers=1", "model.embed_dim=16", "model.num_heads=2", "model.mlp_dim=16", "data.seq_len=64"]
STEPS = ["decontaminate", "split", "dedupe", "add"]


def data_commands(text: str) -> list[list[str]]:
    """The arguments of the `aifx data` commands of a console block."""
    lines = (line.removeprefix("$ aifx ") for line in text.splitlines() if line.startswith("$ aifx data "))
    return [shlex.split(line, comments=True) for line in lines]


def test_a_run_trains_on_what_the_readme_makes(tmp_path: Path) -> None:
    environ = {**os.environ, "AIFX_CACHE_DIR": str(tmp_path / "cache")}

    def aifx(*args: str, cwd: Path = tmp_path / "book") -> CompletedProcess[str]:
        done = inprocess.run(args, cwd, environ)
        assert done.returncode == 0, done.stderr
        return done

    aifx("init", "book", "--template", "language-model", "--yes", cwd=tmp_path)
    readme, toml = tmp_path / "book/README.md", tmp_path / "book/aifx.toml"
    commands = data_commands(readme.read_text())
    assert [command[1] for command in commands] == STEPS[::-1]
    made = [json.loads(aifx(*command, "--json").stdout) for command in commands]
    assert made[0]["rows"] == 135  # the chapters and the epilogue
    assert made[0]["rows"] - made[-1]["rows"] == sum(one.get("dropped", 0) for one in made)

    assert toml.read_text().count('# dataset = "corpus"') == 1
    toml.write_text(toml.read_text().replace("# dataset", "dataset"))
    aifx("config", "check")
    settings = [f"--set={setting}" for setting in (*TINY, "train.num_steps=2", "train.validate_every=2")]
    trained = aifx("train", *settings)
    assert "near-duplicates" not in trained.stderr
    dataset = json.loads((tmp_path / "book/runs/main/provenance.json").read_text())["dataset"]
    assert dataset["reference"] == made[-1]["reference"]
    steps, reference = [], dataset["reference"]
    while reference:
        folder = tmp_path / "book/datasets" / reference.replace("@", "/")
        manifest = json.loads((folder / "manifest.json").read_text())
        steps.append(manifest["step"]["name"])
        reference = next(iter(manifest["parents"]), None)
    assert steps == STEPS
    measured = json.loads(aifx("eval", "--set", "eval.gates=[]", "--json").stdout)
    assert 100_000 < measured["metrics"]["bytes"] < 200_000  # about a tenth
    again = aifx("train", *settings, "--json")
    assert json.loads(again.stdout)["status"] == "completed"


def test_the_demo_runs_the_same_commands() -> None:
    readme = (ROOT / "templates/language-model/README.md.jinja").read_text()
    lines = [line.strip() for line in (ROOT / "scripts/demo.sh").read_text().splitlines()]
    ran = [shlex.split(line)[2:] for line in lines if line.startswith("run aifx data ")]
    assert ran == data_commands(readme)
