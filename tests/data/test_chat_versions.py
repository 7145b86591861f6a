"""Chats, preferences and series of a data set's version."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_versions import make_version

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.chat.format import ChatData, ChatFormat, PreferenceFormat
from aifx.data.chat.section import ChatSection, PreferenceSection
from aifx.data.sections import SeriesSection
from aifx.data.series import SeriesFormat
from aifx.data.splits import SPLITS

HELD_OUT = {"validation_fraction": 0.2, "test_fraction": 0.3}
COUNT = 60


def messages(number: int) -> list[dict[str, str]]:
    answer = f"{number} " * (number % 4 + 1)
    return [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": answer}]


def open_chats(project: Project, **keys: Any) -> ChatData:
    section = ChatSection(**{"seq_len": 128, "tokenizer": "byte", **HELD_OUT, **keys})
    return ChatFormat.open(section, project, project.root / "assets")[1]


def open_pairs(project: Project, **keys: Any) -> ChatData:
    section = PreferenceSection(**{"seq_len": 256, "tokenizer": "byte", **HELD_OUT, **keys})
    return PreferenceFormat.open(section, project, project.root / "assets")[1]


def numbers(data: ChatData) -> dict[str, list[int]]:
    """The rows of each split, from 0, by the places that errors name."""
    tokens = next(rows.tokens for rows in data.splits["train"] if len(rows))
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, split in enumerate(tokens.splits):
        found[SPLITS[split]].append(int(tokens.rows[index]) - 1 + COUNT // 3 * int(tokens.files[index]))
    return found


def test_the_batches_are_those_of_the_file(project: Project, write: Callable[..., Path]) -> None:
    chats = [messages(number) for number in range(COUNT)]
    write("chats.jsonl", "".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    make_version(project, "table", {"messages": chats}, "table", shards=3)
    make_version(project, "chats", {"chat": [json.dumps({"messages": chat}) for chat in chats]}, "chat", shards=3)
    of_file, *of_versions = (
        open_chats(project, **keys)
        for keys in ({"train": ["data/*.jsonl"]}, {"dataset": "table"}, {"dataset": "chats"})
    )
    assert all(numbers(of_versions[1]).values())
    for split, seed in (("train", 3), ("validation", None), ("test", None)):
        one, *others = (data.source(split, 4, seed=seed).read(1, slice(None)) for data in (of_file, *of_versions))
        for name, values in one.items():
            for other in others:
                np.testing.assert_array_equal(values, other[name])


def test_a_cluster_is_in_one_split(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"messages": [messages(number) for number in range(COUNT)]}
    make_version(project, "chats", {**rows, "_cluster": [f"r-{number % 20}" for number in range(COUNT)]}, "table", 3)
    with caplog.at_level(logging.WARNING):
        found = numbers(open_chats(project, dataset="chats"))
    assert all(found.values())
    assert sum(len({number % 20 for number in of_split}) for of_split in found.values()) == 20
    assert "near-duplicates" not in caplog.text


@pytest.mark.parametrize("open_", [open_chats, open_pairs])
def test_the_column_of_splits_decides(project: Project, open_: Callable[..., ChatData]) -> None:
    splits = [SPLITS[number % 3] for number in range(COUNT)]
    answers = {name: [f"{name} {number}" for number in range(COUNT)] for name in ("prompt", "chosen", "rejected")}
    rows = {"messages": [messages(number) for number in range(COUNT)]} if open_ is open_chats else answers
    make_version(project, "chats", {**rows, "_split": splits}, "table", 3)
    found = numbers(open_(project, dataset="chats"))
    for split in SPLITS:
        assert set(found[split]) == {number for number in range(COUNT) if splits[number] == split}


def test_equal_prompts_are_in_one_split(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Without clusters, exact copies stay together, and aifx names the command for the others."""
    rows = {
        "prompt": [f"prompt {number % 20}" for number in range(COUNT)],
        "chosen": [f"good {number}" for number in range(COUNT)],
        "rejected": [f"bad {number}" for number in range(COUNT)],
    }
    make_version(project, "pairs", rows, "table", 3)
    with caplog.at_level(logging.WARNING):
        found = numbers(open_pairs(project, dataset="pairs"))
    assert all(found.values())
    assert sum(len({number % 20 for number in of_split}) for of_split in found.values()) == 20
    assert "aifx data split pairs" in caplog.text


def test_what_cannot_be_read_is_an_error(project: Project) -> None:
    make_version(project, "corpus", {"text": ["a", "b"]}, "text")
    with pytest.raises(DataError, match=r"holds text.*chat"):
        open_chats(project, dataset="corpus")
    for name, line in (("empty", "{}"), ("words", "{a")):
        make_version(project, name, {"chat": [line]}, "chat")
        with pytest.raises(DataError, match=rf"{name}@.*: row 1: not a conversation"):
            open_chats(project, dataset=name)
    make_version(project, "points", {"x": [1, 2]}, "table")
    with pytest.raises(DataError, match=r"points@.*: row 1: "):
        open_chats(project, dataset="points")
    make_version(project, "chats", {"messages": [messages(1)] * 2, "_split": ["train", "eval"]}, "table")
    with pytest.raises(DataError, match="'eval' in column _split"):
        open_chats(project, dataset="chats")


def test_series_of_a_version(project: Project, write: Callable[..., Path]) -> None:
    days = [f"2024-01-{day:02d}" if day < 32 else f"2024-02-{day - 31:02d}" for day in range(1, 56)]
    rows = {"time": days[::-1], "value": [str(day * day % 17) for day in range(55, 0, -1)]}
    write("series.csv", "\n".join(["time,value", *map(",".join, zip(*rows.values(), strict=True))]) + "\n")
    make_version(project, "sales", rows, "table", shards=2)
    keys = {"context": 8, "horizon": 2, "validation_steps": 8, "test_steps": 7}
    (project.root / "assets").mkdir()
    of_file, of_version = (
        SeriesFormat.open(SeriesSection(**keys, **named), project, project.root / "assets")[1]
        for named in ({"path": "data/series.csv"}, {"dataset": "sales"})
    )
    assert of_version.digest == of_file.digest
    one, other = (data.source("test", 4, seed=None).read(0, slice(0, 4)) for data in (of_file, of_version))
    np.testing.assert_array_equal(one["targets"], other["targets"])
    make_version(project, "split", {**rows, "_split": ["train"] * 55}, "table")
    with pytest.raises(DataError, match="series cannot follow"):
        SeriesFormat.open(SeriesSection(**keys, dataset="split"), project, project.root / "assets")
    twice = {"time": [*days, days[3]], "value": ["1"] * 56}
    make_version(project, "twice", twice, "table")
    with pytest.raises(DataError, match=r"twice@.*: row r-55"):
        SeriesFormat.open(SeriesSection(**keys, dataset="twice"), project, project.root / "other")
