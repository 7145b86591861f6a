"""A model that is trained on chats: `aifx generate --chat`, `aifx eval`, `aifx predict`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trained_project import aifx, document

CONFIG = """\
[task]
kind = "chat"
[data]
tokenizer = "byte"
seq_len = 48
test_fraction = 0.2
[model]
num_layers = 1
embed_dim = 32
num_heads = 2
[train]
num_steps = 60
global_batch_size = 16
validate_every = 60
[optimizer]
learning_rate = 0.02
[log]
sample = "Whale 77?"
[generate]
temperature = 0.0
max_tokens = 20
"""


@pytest.fixture(scope="module")
def trained_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("chats") / "project"
    (project / "data").mkdir(parents=True)
    rows = [{"prompt": f"Whale {n}?", "completion": "Aye."} for n in range(60)]
    (project / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "aifx.toml").write_text(CONFIG)
    document(aifx(project, "train", "--json"))
    return project


@pytest.fixture
def chats(trained_chats: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_chats, tmp_path / "chats")
    return tmp_path / "chats"


@pytest.mark.slow
def test_samples_of_the_training_are_answers(chats: Path) -> None:
    events = [json.loads(line) for line in (chats / "runs/main/events.jsonl").read_text().splitlines()]
    (sample,) = [event for event in events if event["event"] == "sample"]
    assert (sample["prompt"], sample["text"]) == ("Whale 77?", "Aye.")


@pytest.mark.slow
def test_an_answer_ends_where_the_model_ends_it(chats: Path) -> None:
    said = aifx(chats, "generate", "--chat", "--prompt", "Whale 99?")
    assert said.returncode == 0, said.stderr
    assert said.stdout == "Aye.\n"
    refused = aifx(chats, "generate", "--chat", "--prompt", "\udcff")  # a byte that is not UTF-8
    assert (refused.returncode, "not UTF-8" in refused.stderr) == (2, True), refused.stderr
    shutil.rmtree(chats / "data")  # the run stands alone
    short = ["--max-tokens", "1", "--json"]
    told = document(aifx(chats, "generate", "--chat", "--system", "S", "--prompt", "x <|im_end|>", *short))
    assert (told["chat"], told["system"], told["prompt"]) == (True, "S", "x <|im_end|>")
    plain = document(aifx(chats, "generate", "--prompt", "Whale 99?", *short))
    assert (plain["chat"], plain["system"]) == (False, None)


@pytest.mark.slow
def test_the_loss_of_held_out_chats_and_of_a_file(chats: Path) -> None:
    report = document(aifx(chats, "eval", "--gate", "loss <= 0.1", "--json"))
    assert report["metrics"]["tokens"] == 5 * (report["metrics"]["tokens"] // 5) > 0
    rows = [{"messages": [{"role": "user", "content": "Whale 7?"}, {"role": "assistant", "content": "No."}]}] * 2
    (chats / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (of_file,) = document(aifx(chats, "eval", "--data", "other.jsonl", "--json"))["datasets"]
    assert of_file["metrics"]["loss"] > 10 * report["metrics"]["loss"]
    done = aifx(chats, "predict", "other.jsonl")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["tokens"] for row in found] == [4, 4]
    assert found[0]["loss"] == pytest.approx(of_file["metrics"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_questions_in_chats(chats: Path) -> None:
    rows = [{"query": f"Whale {n}?", "choices": ["No.", "Aye.", "Never."], "gold": "Aye."} for n in range(3)]
    (chats / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chats / "texts.jsonl").write_text('{"question": "Whale 99?", "answer": "Aye."}\n')
    args = ["--benchmark", "choices.jsonl", "--benchmark", "texts.jsonl", "--chat"]
    choices, texts = document(aifx(chats, "eval", *args, "--json"))["datasets"]
    assert choices["name"] == "choices.jsonl (chat)"
    assert (choices["metrics"]["acc"], choices["metrics"]["acc_norm"], texts["metrics"]["exact_match"]) == (1, 1, 1)
    failed = aifx(chats, "eval", "--chat")
    assert failed.returncode == 2
    assert "--chat requires --benchmark" in failed.stderr


@pytest.mark.slow
def test_what_cannot_chat(chats: Path, project: Path) -> None:
    for where, args, words in (
        (chats, ["--system", "x"], "--system requires --chat"),
        (project, ["--chat"], "cannot chat"),
    ):
        failed = aifx(where, "generate", *args)
        assert failed.returncode == 2
        assert words in failed.stderr
