"""The template fine-tune, with a base run and with a model of Hugging Face's ecosystem."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import inprocess
import jax.numpy as jnp
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.sections import CheckpointSection
from aifx.core.project import Project

BASE = """\
[data]
vocab_size = 600
seq_len = 300
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[train]
num_steps = 4
global_batch_size = 4
validate_every = 2
[checkpoint]
every = 2
keep_last = 2
"""
TEMPLATE = Path(__file__).parents[2] / "templates/fine-tune"
BOOK = Path(__file__).parents[2] / "templates/language-model/data/moby_dick.txt"


def aifx(cwd: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, cwd, {**os.environ, "AIFX_CACHE_DIR": str(cwd.parent / "cache")})
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def whale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of text whose run "main" was trained."""
    root = tmp_path_factory.mktemp("base") / "whale"
    (root / "data").mkdir(parents=True)
    (root / "data/book.txt").write_text(BOOK.read_text()[:60_000])
    (root / "aifx.toml").write_text(BASE)
    aifx(root, "train")
    return root


def train_and_answer(project: Path) -> None:
    aifx(project, "config", "check")
    few = (project / "data/moby_dick_chats.jsonl").read_text().splitlines(keepends=True)[:40]
    (project / "data/moby_dick_chats.jsonl").write_text("".join(few))
    args = ["--set", "train.num_steps=2", "--set", "train.validate_every=0", "--set", "schedule.warmup_steps=0"]
    trained = json.loads(aifx(project, "train", *args, "--set", "data.truncate=drop", "--json").stdout)
    assert (trained["status"], trained["step"]) == ("completed", 2)
    provenance = json.loads((project / "runs/main/provenance.json").read_text())
    assert provenance["finetuned_from"]["run"] == "base"
    aifx(project, "generate", "--chat", "--max-tokens", "3")


def test_without_a_base_each_command_says_how_to_train_one(tmp_path: Path) -> None:
    made = json.loads(aifx(tmp_path, "init", "talk", "-t", "fine-tune", "--yes", "--json").stdout)
    command = "aifx train --config base.toml --run base"
    assert made["next"] == ["cd talk", command, "aifx train", "aifx eval"]
    project = tmp_path / "talk"
    assert command in (project / "README.md").read_text()
    for args in (["train"], ["config", "check"], ["data", "show"]):
        failed = aifx(project, *args, code=2)
        assert "no run 'base'" in failed.stderr
        assert failed.stderr.endswith(f"hint: {command}\n"), failed.stderr
    (project / "base.toml").unlink()
    assert "aifx import SOURCE --name base" in aifx(project, "train", code=2).stderr
    few = ["--set", "train.num_steps=1", "--set", "schedule.warmup_steps=0"]
    missing = aifx(project, "train", "--config", "base.toml", *few, code=2)
    assert "base.toml cannot be read" in missing.stderr


def test_a_mistake_in_another_configuration_names_its_file(tmp_path: Path) -> None:
    aifx(tmp_path, "init", "talk", "-t", "fine-tune", "--yes")
    (tmp_path / "talk/base.toml").write_text("[train]\nnum_steps = -1\n")
    failed = aifx(tmp_path / "talk", "train", "--config", "base.toml", code=2)
    assert "base.toml:2: train.num_steps = -1" in failed.stderr


@pytest.mark.slow
def test_the_base_is_trained_and_then_fine_tuned(tmp_path: Path) -> None:
    """The commands of the project's README, with fewer steps of a smaller model."""
    aifx(tmp_path, "init", "talk", "-t", "fine-tune", "--yes")
    project = tmp_path / "talk"
    for name in ("aifx.toml", "base.toml"):
        text = (project / name).read_text()
        for key, value in {"embed_dim": 48, "num_layers": 1, "mlp_dim": 64, "num_steps": 60, "warmup_steps": 5}.items():
            text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        (project / name).write_text(text)
    base = json.loads(aifx(project, "train", "--config", "base.toml", "--run", "base", "--json").stdout)
    assert (base["status"], base["step"]) == ("completed", 60)
    aifx(project, "config", "check")
    first = ["--set", "train.num_steps=1", "--set", "optimizer.learning_rate=1e-12", "--set", "schedule.warmup_steps=0"]
    losses = []
    for run, settings in (("before", first), ("main", [])):
        aifx(project, "train", "--run", run, *settings)
        report = json.loads(aifx(project, "eval", "--run", run, "--set", "eval.gates=[]", "--json").stdout)
        losses.append(report["metrics"]["loss"])
    assert losses[1] < losses[0] - 0.1
    assert losses[0] < 7.7  # of 4,096 equally likely tokens: 8.3
    provenance = json.loads((project / "runs/main/provenance.json").read_text())
    assert provenance["finetuned_from"]["run"] == "base"
    aifx(project, "generate", "--chat", "--max-tokens", "3")


@pytest.mark.representative("a fine-tuned model")
def test_a_run_as_the_base(whale: Path, tmp_path: Path) -> None:
    aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", f"base={whale / 'runs/main'}", "--yes")
    project = tmp_path / "talk"
    (step,) = (project / "runs/base/checkpoints").iterdir()
    assert step.name in ("2", "4")
    aifx(project, "ckpt", "verify", "--run", "base")
    aifx(project, "eval", "--run", "base", "--data", str(whale / "data/book.txt"))
    train_and_answer(project)


@pytest.mark.slow
def test_a_folder_of_hugging_face_as_the_base(whale: Path, tmp_path: Path) -> None:
    aifx(whale, "export", str(tmp_path / "hub"))
    aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", "base=hub", "--yes")
    project = tmp_path / "talk"
    assert (project / "runs/base/import.json").exists()
    train_and_answer(project)


@pytest.mark.parametrize("base", ["nowhere", "org/model"])
def test_no_such_base(tmp_path: Path, base: str) -> None:
    aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", f"base={base}", "--yes", code=2)
    assert not list(tmp_path.glob("talk*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_base_that_is_no_language_model(tmp_path: Path) -> None:
    aifx(tmp_path, "init", "births", "-t", "custom-task", "--yes")
    aifx(tmp_path / "births", "train", "--set", "train.num_steps=1", "--set", "schedule.warmup_steps=0")
    failed = aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", "base=births/runs/main", "--yes", code=2)
    assert "cannot be fine-tuned" in failed.stderr
    assert not (tmp_path / "talk").exists()


@pytest.mark.slow
def test_a_project_as_the_base_names_its_run(whale: Path, tmp_path: Path) -> None:
    failed = aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", f"base={whale}", "--yes", code=2)
    assert f"--answer base={whale / 'runs/main'}" in failed.stderr


def test_a_damaged_checkpoint_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text("")
    run = Project(tmp_path).run("main")
    Checkpoints(run.checkpoints, CheckpointSection(asynchronous=False)).save(7, {"params": jnp.ones(3000)}, host={})
    run.config.write_text("[task]\nkind = 'language'\n")
    run.assets.mkdir()
    largest = max((p for p in run.checkpoints.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"x" + largest.read_bytes()[1:])
    failed = aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", f"base={run.path}", "--yes", code=2)
    assert str(largest.relative_to(run.checkpoints / "7")) in failed.stderr
    assert "has other bytes" in failed.stderr
    assert not (tmp_path / "talk").exists()


def test_the_bases_text_has_no_answer() -> None:
    """A held-out answer that the base has read would make its loss too small."""
    text = (TEMPLATE / "data/moby_dick_rest.txt").read_text()
    rest = " ".join(text.split())
    book = " ".join(BOOK.read_text().split())
    rows = [json.loads(line) for line in (TEMPLATE / "data/moby_dick_chats.jsonl").read_text().splitlines()]
    assert not [row for row in rows if row["completion"] in rest]
    used = sum(len(row["prompt"].removeprefix("Go on: ")) + len(row["completion"]) + 1 for row in rows)
    assert len(rest) + used == pytest.approx(len(book), rel=0.01)
    assert all(" ".join(part.split()) in book for part in text.split("\n\n"))


def test_the_conversations_are_the_books() -> None:
    book = " ".join(BOOK.read_text().split())
    rows = [json.loads(line) for line in (TEMPLATE / "data/moby_dick_chats.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 1443
    for row in rows:
        assert f"{row['prompt'].removeprefix('Go on: ')} {row['completion']}" in book
