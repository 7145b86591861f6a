"""`aifx data show`: rows as the model sees them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import inprocess
import pytest

CHAT = """\
[task]
kind = "chat"
[data]
tokenizer = "byte"
seq_len = 128
test_fraction = 0.3
validation_fraction = 0.0
[train]
validate_every = 0
"""
TEXT = """\
[data]
tokenizer = "byte"
seq_len = 16
packing = "documents"
"""


def aifx(project: Path, *args: str, **environ: str):
    cache = str(project / "cache")
    return inprocess.run(args, project, {**os.environ, "AIFX_CACHE_DIR": cache, "NO_COLOR": "1", **environ})


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    rows = [{"prompt": f"{n} <|im_end|>", "completion": f"No. {n}"} for n in range(20)]
    (tmp_path / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "aifx.toml").write_text(CHAT)
    return tmp_path


def test_what_is_trained_is_marked(chats: Path) -> None:
    before = sorted(chats.rglob("*"))
    printed = aifx(chats, "data", "show", "--rows", "1")
    assert printed.returncode == 0, printed.stderr
    head, counts, *_ = printed.stdout.splitlines()
    assert head.startswith("row 0 of ")
    assert "data/a.jsonl:" in head
    assert " of 128 tokens, " in counts
    assert printed.stdout.count("{+No. ") == printed.stdout.count("<|im_end|>+}") > 1
    after = [path for path in sorted(chats.rglob("*")) if not path.is_relative_to(chats / "cache")]
    assert after == before


def test_json_has_every_token(chats: Path) -> None:
    found = json.loads(aifx(chats, "data", "show", "--split", "test", "--rows", "99", "--json").stdout)
    assert len(found["rows"]) == found["num_rows"]
    for row in found["rows"]:
        for example in row["examples"]:
            parts = example["parts"]
            assert sum(part["special"] and part["text"] == "<|im_end|>" for part in parts) == 2
            assert [part["text"][:4] for part in parts if part["trained"] and not part["special"]] == ["No. "]
            assert not parts[0]["trained"]
        ids = [index for example in row["examples"] for part in example["parts"] for index in part["ids"]]
        assert len(ids) - len(row["examples"]) == row["tokens"]
    of_all = aifx(chats, "data", "show", "--set", "objective.loss_on=all", "--rows", "1", "--json")
    (row,) = json.loads(of_all.stdout)["rows"]
    assert row["trained"] == row["tokens"]


TABLE = """\
[task]
kind = "tabular"
[data]
path = "points.csv"
target = "y"
[objective]
kind = "%s"
"""


@pytest.mark.parametrize(("objective", "targets"), [("classification", "ab"), ("regression", ["1.5", "-2"])])
def test_a_table_shows_its_values(tmp_path: Path, objective: str, targets: list[str]) -> None:
    lines = [f"{n / 4},{'red' if n % 3 else ''},2026-11-{n % 28 + 1:02},{targets[n % 2]}" for n in range(80)]
    (tmp_path / "points.csv").write_text("x,colour,day,y\n" + "\n".join(lines) + "\n")
    (tmp_path / "aifx.toml").write_text(TABLE % objective)
    done = aifx(tmp_path, "data", "show", "--rows", "9", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 9
    for row in rows:
        number = int(row["place"].removeprefix("points.csv:")) - 2
        fields = row["fields"]
        assert fields["x"] == f"{number / 4:g}"
        assert fields["colour"] == ("red" if number % 3 else "(missing)")
        assert fields["y"] == targets[number % 2]
        assert any(name.startswith("day (") for name in fields)


def test_colours(chats: Path) -> None:
    printed = aifx(chats, "data", "show", "--rows", "1", NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[32mNo. " in printed.stdout
    assert "{+" not in printed.stdout


def test_text_and_its_context(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for n in range(3):
        (tmp_path / f"data/{n}.txt").write_text(f"Text {n} is read. " * 30)
    (tmp_path / "aifx.toml").write_text(TEXT)
    found = json.loads(aifx(tmp_path, "data", "show", "--rows", "500", "--json").stdout)
    assert {row["trained"] for row in found["rows"]} <= set(range(1, 17))
    texts = [p["text"] for row in found["rows"] for e in row["examples"] for p in e["parts"] if p["trained"]]
    assert sum(map(len, texts)) > 1000
    assert {found["seq_len"], found["split"]} == {16, "train"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--first", "999"], "after the last row"),
        (["--split", "validation"], "no validation split"),
        (["--run", "other"], "other"),
        (["--set", "data.seq_len=20"], "data/a.jsonl:"),
    ],
)
def test_what_cannot_be_shown(chats: Path, args: list[str], words: str) -> None:
    done = aifx(chats, "data", "show", *args)
    assert done.returncode == 2
    assert words in done.stderr


def test_the_batch_of_a_step_is_shown(chats: Path) -> None:
    from aifx.core.project import Project
    from aifx.kinds import load_config
    from aifx.tasks.base import training_source
    from aifx.tasks.registry import open_task

    printed = aifx(chats, "data", "show", "--step", "3", "--rows", "2", "--set", "train.global_batch_size=4", "--json")
    found = json.loads(printed.stdout)
    assert (found["step"], found["batch"], found["num_rows"], found["skipped"], found["fault"]) == (3, 2, 4, None, None)
    project = Project(chats)
    config = load_config(project, ["train.global_batch_size=4"], {})
    (chats / "assets").mkdir()
    batch = training_source(open_task(config, project, chats / "assets"), config).read(2, slice(0, 2))
    for row, inputs in zip(found["rows"], batch["inputs"], strict=True):
        ids = [part["ids"] for example in row["examples"] for part in example["parts"]]
        assert ids[0][0] == inputs[0]
    text = aifx(chats, "data", "show", "--batch", "2", "--set", "train.global_batch_size=4").stdout
    assert re.match(r"training batch 2 .*4 rows.* step 3\b", text)
    assert text.count("{+No. ") > 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step", "1", "--batch", "1"], "cannot be used together"),
        (["--step", "1", "--split", "test"], "no steps"),
        (["--step", "1", "--first", "99"], "a batch has 16 rows"),
    ],
)
def test_which_batch_cannot_be_shown(chats: Path, args: list[str], words: str) -> None:
    done = aifx(chats, "data", "show", *args)
    assert done.returncode == 2
    assert words in done.stderr
