"""Splits that share nothing, and together hold every byte."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import prose

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.chat.section import ChatSection
from aifx.data.chat.store import open_chats
from aifx.data.corpus import open_corpora
from aifx.data.readers import documents
from aifx.data.sections import TextSection
from aifx.data.splits import SPLITS
from aifx.data.text import TextData

Write = Callable[..., Path]
Open = Callable[..., TextData]
DOCUMENT = st.text(st.sampled_from("ab é字😀\n"), min_size=1, max_size=40)


def divide(project: Project, **keys: object) -> dict[str, list[str]]:
    """The documents, or parts of them, of each split."""
    parts: dict[str, list[str]] = {split: [""] for split in SPLITS}
    (corpus,) = open_corpora(TextSection(**keys), project)
    for split, piece in corpus.pieces():
        parts[split][-1] += piece.text
        if piece.closes:
            parts[split].append("")
    return {split: [text for text in texts if text] for split, texts in parts.items()}


def write_records(folder: Path, texts: list[str]) -> None:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


@given(st.lists(DOCUMENT, min_size=1, max_size=8), st.floats(0, 0.45), st.floats(0, 0.45))
def test_blocks_are_the_text_cut_in_three(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], validation: float, test: float
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    write_records(folder, texts)
    keys = {"train": ("data/*.jsonl",), "validation_fraction": validation, "test_fraction": test}
    parts = {split: "".join(found).encode() for split, found in divide(Project(folder), **keys).items()}
    whole = "".join(texts).encode()
    assert parts["train"] + parts["validation"] + parts["test"] == whole
    # To the nearest byte, then back to the beginning of a character.
    assert -0.5 <= len(parts["test"]) - len(whole) * test <= 0.5 + 3
    assert -0.5 - 3 <= len(parts["train"]) - len(whole) * (1 - validation - test) <= 0.5


def test_the_test_is_the_last_tenth_to_the_byte(
    project: Project, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = prose(50_000)
    write("book.txt", text)
    whole = text.encode()
    start = round(len(whole) * 0.9)
    while whole[start] & 0xC0 == 0x80:
        start -= 1
    for size in (documents.PIECE_CHARACTERS, 100):
        monkeypatch.setattr(documents, "PIECE_CHARACTERS", size)
        assert divide(project)["test"] == [whole[start:].decode()]


def test_a_block_ends_documents_where_they_end(project: Project) -> None:
    write_records(project.root, ["aaaa", "bbbb", "cc"])
    parts = divide(project, train=("data/*.jsonl",), validation_fraction=0.2, test_fraction=0.4)
    assert parts == {"train": ["aaaa"], "validation": ["bb"], "test": ["bb", "cc"]}


@given(st.lists(DOCUMENT, min_size=1, max_size=30), st.integers(1, 3))
def test_copies_of_a_document_stay_together(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], copies: int
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    write_records(folder, texts * copies)
    keys = {"train": ("data/*.jsonl",), "split": "document", "validation_fraction": 0.3, "test_fraction": 0.3}
    parts = divide(Project(folder), **keys)
    assert sorted(itertools.chain(*parts.values())) == sorted(texts * copies)
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(parts[one]) & set(parts[other])


def test_documents_are_held_out_in_proportion_wherever_they_stand(project: Project) -> None:
    texts = [f"document {number}" for number in range(2000)]
    write_records(project.root, texts)
    keys = {"train": ("data/*.jsonl",), "split": "document", "validation_fraction": 0.2, "test_fraction": 0.1}
    parts = divide(project, **keys)
    assert 340 < len(parts["validation"]) < 460
    assert 150 < len(parts["test"]) < 250
    write_records(project.root, texts[::-1])
    again = divide(project, **keys)
    assert {split: set(found) for split, found in again.items()} == {
        split: set(found) for split, found in parts.items()
    }


def test_a_long_document_is_hashed_whole(project: Project, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = prose(3000)
    for number in range(12):
        write(f"{number}.txt", f"{text} {number}")
    keys = {"split": "document", "validation_fraction": 0.3, "test_fraction": 0.3}
    parts = divide(project, **keys)
    assert sum(map(len, parts.values())) == 12
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 200)
    assert divide(project, **keys) == parts


def test_files_of_their_own_are_the_split(project: Project, write: Write) -> None:
    for name in ("a", "b", "validation", "test"):
        write(f"{name}.txt", name * 10)
    keys = {"train": ("data/?.txt",), "validation": ("data/validation.txt",), "test": ("data/test.txt",)}
    parts = divide(project, **keys)
    assert parts == {"train": ["a" * 10, "b" * 10], "validation": ["validation" * 10], "test": ["test" * 10]}
    del keys["test"]
    parts = divide(project, **keys)
    assert parts["test"] == ["bb"]
    assert parts["validation"] == ["validation" * 10]


def test_a_file_in_two_splits_is_refused(write: Write, open_: Open) -> None:
    write("a.txt", prose(2000))
    write("b.txt", prose(2000, 1))
    with pytest.raises(DataError, match=r"data/b.txt .*data.train and data.test"):
        open_(test=("data/b.txt",))
    with pytest.raises(DataError, match=r"data/./b.txt .*data.validation and data.test"):
        open_(train=("data/a.txt",), validation=("data/b.txt",), test=("data/./b.txt",))


def test_a_copy_of_a_file_in_another_split_is_refused(write: Write, open_: Open) -> None:
    write("a.txt", prose(2000))
    write("copy.txt", prose(2000))
    write("b.txt", prose(2000, 1))
    with pytest.raises(DataError, match=r"data/a.txt of data.train .*data/copy.txt"):
        open_(train=("data/a.txt",), test=("data/copy.txt",))
    open_(train=("data/a.txt", "data/copy.txt"), test=("data/b.txt",))  # twice in one split leaks nothing


@pytest.mark.parametrize(
    ("keys", "split"),
    [
        ({"seq_len": 4000}, "train"),
        ({"validation_fraction": 0.001}, "validation"),
        ({"test_fraction": 0.001}, "test"),
        ({"split": "document"}, "(validation|test)"),
    ],
)
def test_a_split_shorter_than_a_sequence_is_named(
    keys: dict[str, object], split: str, write: Write, open_: Open
) -> None:
    write("a.txt", prose(300))
    with pytest.raises(DataError, match=f"data/a.txt: the {split} split") as caught:
        open_(**keys)
    assert "tokens (" in caught.value.why
    assert "data.seq_len is" in caught.value.why
    assert "data." in caught.value.hint


def test_the_hint_for_short_text_works(write: Write, open_: Open) -> None:
    write("a.txt", prose(300))
    with pytest.raises(DataError) as caught:
        open_(seq_len=100, validation_fraction=0.02)
    key, value = caught.value.hint.removeprefix("aifx train --set data.").split("=")
    data = open_(**{key: int(value)}, validation_fraction=0.02)
    assert data.source("validation", batch_size=2, seed=None).num_batches == 1


def test_a_split_that_was_not_asked_for(write: Write, open_: Open) -> None:
    write("a.txt", prose(2000))
    data = open_(validation_fraction=0)
    assert data.store.splits["validation"].num_targets == 0
    with pytest.raises(DataError, match="no validation split") as caught:
        data.source("validation", batch_size=2, seed=None)
    assert "data.validation_fraction" in caught.value.hint


def test_digests_that_a_resume_compares_stay(project: Project, write: Write) -> None:
    """A run that an older aifx began goes on if its data is what it was."""
    write("a.txt", "Call me Ishmael.\n" * 9)
    write("b.jsonl", '{"text": "Some years ago"}\n')
    write("c.jsonl", '{"prompt": "Who?", "completion": "Ahab."}\n')
    held = TextSection(train=("data/b.jsonl",), validation=("data/a.txt",), split="document", errors="skip")
    texts = [open_corpora(section, project)[0].digest for section in (TextSection(), held)]
    assert texts == [
        "87f3283d41c3783df5fbde4fa81066055c54fd39e01c16598a2ca0352fe2f304",
        "360675af32997dff016dcc14d470fdca2f4df89140919764fa9df032fbfd64d3",
    ]
    entries = ChatSection(train=("data/c.jsonl", "data/*.jsonl"))
    tested = ChatSection(train=("data/b.jsonl",), test=("data/c.jsonl",))
    assert [open_chats(section, project).digest for section in (entries, tested)] == [
        "70253d79fdeef6efceb5dc8764d25b13785eb3449e369fa71ff34a64ad528ff2",
        "25425b2edcc792d51d1fe5c247c268dbb6ab02f0236ca78539ea43a5115110c8",
    ]
