"""The template fine-tune, with a base run and with a model of Hugging Face's ecosystem."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import inprocess
import pytest

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


def test_a_run_as_the_base(whale: Path, tmp_path: Path) -> None:
    aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", f"base={whale / 'runs/main'}", "--yes")
    project = tmp_path / "talk"
    (step,) = (project / "runs/base/checkpoints").iterdir()
    assert step.name in ("2", "4")
    aifx(project, "ckpt", "verify", "--run", "base")
    aifx(project, "eval", "--run", "base", "--data", str(whale / "data/book.txt"))
    train_and_answer(project)


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


def test_a_base_that_is_no_language_model(tmp_path: Path) -> None:
    aifx(tmp_path, "init", "births", "-t", "custom-task", "--yes")
    aifx(tmp_path / "births", "train", "--set", "train.num_steps=1", "--set", "schedule.warmup_steps=0")
    failed = aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", "base=births/runs/main", "--yes", code=2)
    assert "cannot be fine-tuned" in failed.stderr
    assert not (tmp_path / "talk").exists()


def test_a_project_as_the_base_names_its_run(whale: Path, tmp_path: Path) -> None:
    failed = aifx(tmp_path, "init", "talk", "-t", "fine-tune", "-a", f"base={whale}", "--yes", code=2)
    assert f"--answer base={whale / 'runs/main'}" in failed.stderr


def test_the_conversations_are_the_books() -> None:
    book = " ".join(BOOK.read_text().split())
    rows = [json.loads(line) for line in (TEMPLATE / "data/moby_dick_chats.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 1443
    for row in rows:
        assert f"{row['prompt'].removeprefix('Go on: ')} {row['completion']}" in book
