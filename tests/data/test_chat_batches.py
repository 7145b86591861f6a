"""Chat data: rows of files, splits, truncation, packing, mixes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aifx.core.artifact import MANIFEST
from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.chat.format import ChatData, ChatFormat, Mix
from aifx.data.chat.rows import Conversation, Preference, read_chats
from aifx.data.chat.section import ChatSection
from aifx.data.readers.sources import local_file

Write = Callable[..., Path]
Open = Callable[..., ChatData]
ALL = slice(None)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int, name: str = "") -> str:
    return lines([{"prompt": f"{name} {n}?", "completion": f"{n} " * (n % 7 + 1)} for n in range(count)])


@pytest.fixture
def open_chats(project: Project) -> Open:
    def open_(assets: str = "assets", **keys: Any) -> ChatData:
        section = ChatSection(**{"seq_len": 64, "tokenizer": "byte", **keys})
        return ChatFormat.open(section, project, project.root / assets)[1]

    return open_


def conversations(data: ChatData, split: str = "train") -> list[str]:
    """Each conversation of a split, as its segment in the batches reads."""
    found = []
    source = data.source(split, 4, seed=None)  # type: ignore[arg-type]
    for step in range(source.num_batches or 0):
        batch = source.read(step, ALL)
        for inputs, targets, segments, positions, weights in zip(
            *(batch[name] for name in ("inputs", "targets", "segment_ids", "positions", "weights")), strict=True
        ):
            assert ((segments > 0) == (weights > 0)).all()
            for segment in range(1, segments.max(initial=0) + 1):
                inside = segments == segment
                assert positions[inside].tolist() == list(range(inside.sum()))
                assert (inputs[inside][1:] == targets[inside][:-1]).all()
                found.append(data.tokenizer.decode([inputs[inside][0], *targets[inside]]))
    return found


def parsed(tmp_path: Path, row: dict[str, Any]) -> Conversation | Preference:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    (found,) = read_chats(local_file(path, "rows.jsonl"))
    return found


def test_the_shapes_of_a_row(tmp_path: Path) -> None:
    user, first = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    other = {**first, "content": "c"}
    prompt = parsed(tmp_path, {"prompt": "a", "completion": "b", "id": 3})
    assert isinstance(prompt, Conversation)
    assert prompt.messages == (user, first)
    assert parsed(tmp_path, {"messages": [user, first]}) == prompt
    assert parsed(tmp_path, {"prompt": [user], "completion": [first]}) == prompt
    assert (prompt.place, prompt.number) == ("rows.jsonl:2", 2)
    for row in (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [user], "chosen": [first], "rejected": [other]},
        {"chosen": [user, first], "rejected": [user, other]},
    ):
        found = parsed(tmp_path, row)
        assert isinstance(found, Preference)
        assert (found.chosen.messages, found.rejected.messages) == ((user, first), (user, other))
        assert found.chosen.prompt_length == found.rejected.prompt_length == 1
    longer = parsed(tmp_path, {"messages": [user, first, user, other], "tools": [{"name": "t"}]})
    assert isinstance(longer, Conversation)
    assert (longer.answers, longer.prompt_length, longer.tools) == ([1, 3], 3, ({"name": "t"},))


def test_rows_of_sharegpt_and_alpaca(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    plain = parsed(tmp_path, {"prompt": "a", "completion": "b"})
    assert parsed(tmp_path, {"conversations": shared}) == plain
    assert parsed(tmp_path, {"conversations": plain.messages}) == plain  # type: ignore[union-attr]
    assert parsed(tmp_path, {"instruction": "a", "input": "", "output": "b"}) == plain
    whole = parsed(tmp_path, {"instruction": "a", "input": "x", "output": "b", "system": "s"})
    assert isinstance(whole, Conversation)
    assert [message["content"] for message in whole.messages] == ["s", "a\n\nx", "b"]
    assert (whole.messages[0]["role"], whole.prompt_length) == ("system", 2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]}, "[1].from"),
        ({"conversations": "hi"}, "it is str"),
        ({"conversations": [{"from": "human"}]}, "messages[0].content is not text"),
        ({"instruction": "x", "input": 3, "output": "y"}, "input is not text"),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "history is not read"),
        ({"instruction": "x", "output": 3}, "completion is not a list"),
        ({"message": []}, "did you mean 'messages'"),
        ({"messages": []}, "empty"),
        ({"messages": "hi"}, "it is str"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "it is image"),
        ({"messages": [{"role": "user", "content": []}]}, "an empty list"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"arguments": {"\ud800": 1}}]}]},
            "calls is not Unicode",
        ),
        ({"messages": [{"role": "user", "content": "b"}], "tools": [{"name": "\ud800"}]}, "tools is not Unicode"),
        ({"messages": ["hi"]}, "messages[0] is not a message"),
        ({"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user", "content": "x"}]}, "no pair"),
        ({"prompt": "x", "completion": 3}, "completion is not a list"),
        ({"prompt": "x", "completion": "y", "tools": 3}, "tools is not a list"),
    ],
)
def test_errors_of_rows_name_the_file_and_the_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as refused:
        parsed(tmp_path, row)
    assert refused.value.what.startswith("rows.jsonl:2")
    assert words in f"{refused.value.what} {refused.value.why}"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "no message of the assistant"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "two answers"),
    ],
)
def test_rows_without_one_answer(write: Write, open_chats: Open, row: dict[str, Any], words: str) -> None:
    write("a.jsonl", pairs(3) + lines([row]))
    with pytest.raises(DataError, match=rf"data/a\.jsonl:4: .*{words}"):
        open_chats()


def test_parquet_gives_what_json_lines_give(write: Write, project: Project, open_chats: Open) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    calls = [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}]
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}]}
        for n in range(20)
    ]
    rows[3]["messages"].insert(1, {"role": "assistant", "content": "Wait.", "calls": calls})  # type: ignore[dict-item]
    write("a.jsonl", lines(rows))
    parquet.write_table(arrow.Table.from_pylist(rows), project.root / "data/a.parquet")
    one, other = open_chats("a"), open_chats("b", train=["data/a.parquet"])
    assert conversations(one) == conversations(other)
    assert [[chat.number for *_, chat in data.corpus.conversations()] for data in (one, other)] == [[*range(1, 21)]] * 2
    assert one.corpus.place(one.splits["train"][0].tokens, 0).startswith("data/a.jsonl:")
    assert other.corpus.place(other.splits["train"][0].tokens, 0).startswith("data/a.parquet: row ")


def test_splits_are_disjoint_and_whole(write: Write, open_chats: Open) -> None:
    write("a.jsonl", pairs(60) + pairs(60))  # each conversation twice
    data = open_chats(validation_fraction=0.2, test_fraction=0.2)
    by_split = {split: Counter(conversations(data, split)) for split in ("train", "validation", "test")}
    assert all(set(found.values()) == {2} for found in by_split.values())
    assert sum(len(found) for found in by_split.values()) == 60
    write("held.jsonl", pairs(5, "held"))
    apart = open_chats("other", train=["data/a.jsonl"], test=["data/held.jsonl"], validation_fraction=0.2)
    assert len(conversations(apart, "test")) == 5


def test_a_copied_file_is_not_held_out(write: Write, open_chats: Open) -> None:
    write("a.jsonl", pairs(5))
    write("b.jsonl", pairs(5))
    write("c.jsonl.gz", gzip.compress(pairs(5).encode()))
    for copy in ("b.jsonl", "c.jsonl.gz"):
        with pytest.raises(DataError, match="byte for byte"):
            open_chats(train=["data/a.jsonl"], test=[f"data/{copy}"])


def test_packed_rows_hold_what_single_rows_hold(write: Write, open_chats: Open) -> None:
    write("a.jsonl", pairs(50))
    packed, single = open_chats("a", seq_len=100), open_chats("b", seq_len=100, packing="none")
    assert sorted(conversations(packed)) == sorted(conversations(single))
    assert len(packed.splits["train"][0]) < len(single.splits["train"][0])
    assert packed.digest != single.digest
    again = open_chats("c", seq_len=100)  # from the cache
    assert again.digest == packed.digest
    one, other = (data.source("train", 3, seed=1).read(5, ALL) for data in (packed, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["ids.npy", "starts.npy", MANIFEST])
def test_a_damaged_cache_is_made_again(
    name: str, write: Write, open_chats: Open, logged: list[str], tmp_path: Path
) -> None:
    """When it is opened, or when a block of the tokens is read."""
    write("a.jsonl", pairs(600))
    whole = conversations(open_chats("a"))
    (path,) = (folder / name for folder in (tmp_path / "cache/chats").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    logged.clear()
    data = open_chats("b")
    assert bool(logged) == (name != "ids.npy"), "training starts without reading the tokens"
    assert conversations(data) == whole
    assert f"{path.parent} is damaged" in logged[0]
    assert path.read_bytes() == content


def test_too_long_conversations(write: Write, open_chats: Open, logged: list[str]) -> None:
    long = {"messages": [{"role": "user", "content": "u" * 30}, {"role": "assistant", "content": "a" * 30}]}
    write("a.jsonl", pairs(4) + lines([long, {**long, "prompt": None}]))
    keys = {"validation_fraction": 0.0, "test_fraction": 0.0}
    with pytest.raises(DataError, match=r"data/a\.jsonl:5: .*80 tokens") as refused:
        open_chats(**keys)
    assert "2 of 6" in refused.value.why
    assert len(conversations(open_chats(truncate="drop", **keys))) == 4
    left, right = (open_chats(truncate=how, **keys) for how in ("left", "right"))
    kept = [text for text in conversations(left) if "a" * 30 in text]
    assert len(kept) == 2
    assert all(text.endswith("<|im_end|>\n") for text in kept)
    assert sum(text.startswith("<|im_start|>user\nuuu") for text in conversations(right)) == 2
    assert (left.truncation.truncated, left.truncation.without_end) == (2, 0)
    assert (right.truncation.truncated, right.truncation.without_end) == (2, 2)
    assert any("2 of 6 conversations" in line and "lose" in line for line in logged)
    assert not any("lose" in line for line in logged if "left" in line)


@pytest.fixture
def short_cycle(monkeypatch: pytest.MonkeyPatch) -> int:
    """A permutation takes a millisecond for each of its rows."""
    monkeypatch.setattr("aifx.data.chat.format.CYCLE", 100)
    return 100


def test_a_mix_has_its_shares_at_any_place(short_cycle: int) -> None:
    mix = Mix([3, 40, 7], [1, 2, 1])
    found = [mix(place, seed=5) for place in range(short_cycle)]
    assert Counter(entry for entry, _ in found) == {0: 25, 1: 50, 2: 25}
    of_first = Counter(index for entry, index in found if entry == 0)
    assert max(of_first.values()) - min(of_first.values()) <= 1
    assert mix(17, seed=5) == found[17]
    plain = Mix([3, 4])
    assert {plain(place, 0) for place in range(7)} == {(0, n) for n in range(3)} | {(1, n) for n in range(4)}


def test_weighted_data_sets(write: Write, open_chats: Open, short_cycle: int) -> None:
    write("a.jsonl", pairs(40, "a"))
    write("b.jsonl", pairs(10, "b"))
    keys = {"train": ["data/a.jsonl", "data/b.jsonl"], "packing": "none", "validation_fraction": 0.0}
    source = open_chats(mix=[1, 3], **keys).source("train", 50, seed=3)
    read = np.concatenate([source.read(step, ALL)["inputs"] for step in range(short_cycle // 50)])
    first = read[:, len("<|im_start|>user\n") - len("<|im_start|>") + 1]
    assert Counter(first.tolist()).most_common()[0][1] == 75


def test_predictions_take_a_row(write: Write, project: Project) -> None:
    write("a.jsonl", pairs(30))
    form, _ = ChatFormat.open(ChatSection(seq_len=64, tokenizer="byte"), project, project.root / "assets")
    row = {"prompt": " 4?", "completion": "4 4 4 4 4 "}
    batch = form.encode(row)
    assert {name: (values.dtype, values.shape[1:]) for name, values in batch.items() if name in form.spec.fields} == {
        name: (np.dtype(field.dtype), field.shape) for name, field in form.spec.fields.items()
    }
    loaded = ChatFormat.load(form.section, form.spec, project.root / "assets")
    assert all(np.array_equal(batch[name], loaded.encode(row)[name]) for name in batch)
    for wrong in (
        {"prompt": "x"},
        {"prompt": "x" * 99, "completion": "y"},
        {"prompt": "x", "chosen": "y", "rejected": "z"},
    ):
        with pytest.raises((ValueError, DataError)):
            form.encode(wrong)


def test_a_file_without_rows_of_chats_is_named_with_its_key(project: Project, write: Write) -> None:
    write("a.jsonl", pairs(3))
    write("b.txt", "text")
    section = ChatSection(validation=("data/b.txt",))
    ((key, error),) = section.check_files(project)
    assert (key, error.what) == ("data.validation", "data/b.txt: no reader for .txt")
    assert error.why.split(" takes ")[1].startswith(".jsonl, .ndjson, .parquet,"), "and not those of text"
    assert "data/*.jsonl" in error.hint
    write("rows.json", "[]")
    with pytest.raises(DataError, match=r"data/rows.json") as refused:
        section.find("validation", project, ["data/*.json"])
    assert ".txt" not in f"{refused.value.why} {refused.value.hint}"
    with pytest.raises(DataError, match=r"is a directory") as refused:
        section.find("validation", project, ["data"])
    assert "data/*.jsonl" in refused.value.hint
    with pytest.raises(DataError, match=r"b.txt: no reader"):
        section.check(local_file(project.root / "data/b.txt"))
    with pytest.raises(DataError, match=r"data/b.txt"):
        section.read_beginnings(project)
    assert ChatSection().read_beginnings(project) == 1
