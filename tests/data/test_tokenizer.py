"""Lossless, the same for the same text, and exact about bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from prose import prose
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from aifx.data import TextData
from aifx.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from aifx.errors import DataError
from aifx.project import Project

Write = Callable[..., Path]
Open = Callable[..., TextData]
OURS = Tokenizer(train_tokenizer([prose(2000)], 500), "ours")


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_comes_back_and_its_bytes_are_counted(text: str) -> None:
    ids = OURS.encode(text)
    assert OURS.decode(ids) == text
    assert OURS.token_bytes()[ids].sum() == len(text.encode())
    assert OURS.eos_id not in ids


def test_the_sizes_are_what_was_asked() -> None:
    assert OURS.vocab_size == 500
    assert OURS.eos_id == 0
    sizes = OURS.token_bytes()
    assert sizes.dtype == np.float32
    assert sizes.shape == (500,)
    assert sizes[0] == 0
    assert (sizes[1:257] == 1).all()
    assert (sizes[257:] > 1).all()


def test_text_that_spells_a_special_token_is_text() -> None:
    text = f"one{END_OF_TEXT}two"
    assert OURS.eos_id not in OURS.encode(text)
    assert [OURS.eos_id not in encoding.ids for encoding in OURS.encode_batch([text, text])] == [True, True]
    assert OURS.decode(OURS.encode(text)) == text
    assert OURS.decode([OURS.eos_id]) == END_OF_TEXT


def test_training_is_the_same_in_every_process() -> None:
    script = (
        "import hashlib; from prose import prose; from aifx.data.tokenizer import train_tokenizer\n"
        "texts = [prose(3000, seed) for seed in range(4)]\n"
        "print(hashlib.sha256(train_tokenizer(texts, 700)).hexdigest())"
    )
    command = [sys.executable, "-c", script]
    folder = Path(__file__).parent
    found = {subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(found) == 1


def test_it_learns_from_the_training_split_alone(write: Write, open_: Open) -> None:
    text = prose(6000)
    cut = int(len(text) * 0.8)
    write("a.txt", text)
    keys = {"validation_fraction": 0.05, "test_fraction": 0.1, "vocab_size": 600}
    first = open_("a", **keys).tokenizer.data
    # Held-out text of the same length that is full of what would else become tokens.
    held_out = "xylophone " * len(text)
    size = len(text.encode()) - len(text[:cut].encode())
    write("a.txt", text[:cut] + text[cut : cut + 10] + held_out[: size - len(text[cut : cut + 10].encode())])
    assert open_("b", **keys).num_bytes("train") > len(text[:cut].encode())
    tokens = set(json.loads(first)["model"]["vocab"])
    assert "xylophone" not in tokens
    write("a.txt", text[:-1000] + held_out[: len(text[-1000:].encode())])
    assert open_("c", **keys).tokenizer.data == first


def test_it_is_kept_in_the_run_and_used_from_there(project: Project, write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    open_("run")
    kept = project.root / "run/tokenizer.json"
    assert Tokenizer.load(kept).vocab_size == 300
    kept.write_bytes(train_tokenizer([prose(3000)], 400))
    assert open_("run").tokenizer.vocab_size == 400
    assert open_("other").tokenizer.vocab_size == 300
    kept.write_text("{}")
    with pytest.raises(DataError, match=r"run/tokenizer.json: not a tokenizer"):
        open_("run")


def foreign() -> tokenizers.Tokenizer:
    """As people bring them: lower case, words with a mark before, a beginning added, cut at 8 tokens."""
    other = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    other.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    other.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    other.train_from_iterator([prose(3000)], trainer)
    other.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    other.enable_truncation(8)
    other.enable_padding(length=8)
    return other


def test_a_tokenizer_of_ones_own(project: Project, write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    foreign().save(str(project.root / "tokenizer.json"))
    data = open_(tokenizer="tokenizer.json")
    tokenizer = data.tokenizer
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (300, 2)
    assert not tokenizer.can_cut
    assert len(tokenizer.encode("one two three four five six seven")) > 8
    assert not {1, 2} & set(tokenizer.encode("one two </s>"))
    total = 0.0
    source = data.source("test", batch_size=4, seed=0)
    for step in range(source.num_batches or 0):
        batch = source.read(step, slice(None))
        total += float((tokenizer.token_bytes()[batch["targets"]] * batch["weights"]).sum(dtype=np.float64))
    assert total == pytest.approx(data.num_bytes("test"), rel=1e-6)
    assert (project.root / "assets/tokenizer.json").read_bytes() == (project.root / "tokenizer.json").read_bytes()


def test_dropout_is_left_out() -> None:
    description = json.loads(OURS.data)
    description["model"]["dropout"] = 0.5
    tokenizer = Tokenizer(json.dumps(description).encode(), "dropout")
    assert {tuple(tokenizer.encode(prose(50))) for _ in range(5)} == {tuple(OURS.encode(prose(50)))}


def test_files_that_are_no_tokenizer(project: Project, write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    (project.root / "bad.json").write_text("[1, 2")
    other = foreign()
    other.post_processor = None
    endless = json.loads(other.to_str().replace("</s>", "<end>"))
    (project.root / "endless.json").write_text(json.dumps(endless))
    os.mkfifo(project.root / "pipe.json")
    for name, what in (
        ("bad.json", "bad.json: not a tokenizer"),
        ("endless.json", "endless.json: no token ends a document"),
        ("gone.json", "gone.json cannot be read"),
        ("data", "data is a directory"),
        ("pipe.json", "pipe.json is not a regular file"),
    ):
        with pytest.raises(DataError, match=what) as caught:
            open_(tokenizer=name)
        assert caught.value.hint
    assert not (project.root / "assets").exists()
