"""Lossless, the same for the same text, and exact about bytes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from prose import prose
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data import tokenizer as module
from aifx.data.text import TextData
from aifx.data.tokenizer import BYTE_TOKENS, END_OF_TEXT, LOOKS_AHEAD, Tokenizer, character_tokenizer, train_tokenizer
from aifx.data.tokenizer_checks import SHRINKAGE, library_errors

Write = Callable[..., Path]
Open = Callable[..., TextData]
OURS = Tokenizer(train_tokenizer([prose(2000)], 500), "ours")


BYTES = Tokenizer(train_tokenizer((), BYTE_TOKENS), "bytes")
CHARACTERS = Tokenizer(character_tokenizer(["naïve 鲸鱼, ", "鲸鱼 鲸 \U0001f40b\n"], None), "characters")


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_comes_back_and_its_bytes_are_counted(text: str) -> None:
    for tokenizer in (OURS, BYTES, CHARACTERS):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
        assert tokenizer.eos_id not in ids


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_a_token_is_a_byte_or_a_character_of_the_training_text(text: str) -> None:
    assert len(BYTES.encode(text)) == len(text.encode())
    known = set("ï鲸鱼\U0001f40b")
    assert len(CHARACTERS.encode(text)) == sum(1 if c in known else len(c.encode()) for c in text)


def test_the_most_frequent_characters_are_kept() -> None:
    assert (BYTES.vocab_size, CHARACTERS.vocab_size) == (BYTE_TOKENS, BYTE_TOKENS + 4)
    fewer = Tokenizer(character_tokenizer(["éàéàéèü"], BYTE_TOKENS + 2), "fewer")
    assert fewer.vocab_size == BYTE_TOKENS + 2
    assert [len(fewer.encode(c)) for c in "éàèü"] == [1, 1, 2, 2]


@pytest.mark.parametrize(("kind", "vocab_size"), [("byte", BYTE_TOKENS), ("char", BYTE_TOKENS + 2)])
def test_a_project_reads_bytes_or_characters(kind: str, vocab_size: int, write: Write, open_: Open) -> None:
    write("a.txt", "Zwölf Boxkämpfer jagen Viktor quer. " * 400)
    data = open_("a", tokenizer=kind, vocab_size=None)
    assert data.spec.vocab_size == vocab_size
    batch = data.source("train", 4, seed=0).read(0, slice(0, 4))
    assert batch["inputs"].max() < vocab_size
    held_out = data.source("test", 1, seed=None)
    counted = [data.counts(held_out.read(step, slice(0, 1))) for step in range(held_out.num_batches or 0)]
    assert sum(count["bytes"] for count in counted) == data.store.splits["test"].num_bytes
    assert open_("b", tokenizer=kind, vocab_size=None).digest == data.digest


def test_long_text_in_parts_has_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 2 * LOOKS_AHEAD)
    text = "鲸鱼 naïve  \n\n" * 600
    parts = list(CHARACTERS.divide(text))
    assert len(parts) > 3
    assert [i for part in parts for i in CHARACTERS.encode(part)] == CHARACTERS.encode(text)


def test_the_sizes_are_what_was_asked() -> None:
    assert OURS.vocab_size == 500
    assert OURS.eos_id == 0
    sizes = OURS.token_bytes()
    assert sizes.dtype == np.int64
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


@pytest.mark.slow
def test_training_is_the_same_in_every_process() -> None:
    script = (
        "import hashlib; from prose import prose; from aifx.data.tokenizer import train_tokenizer\n"
        "texts = [prose(3000, seed) for seed in range(4)]\n"
        "print(hashlib.sha256(train_tokenizer(texts, 700)).hexdigest())"
    )
    command = [sys.executable, "-c", script]
    folder = Path(__file__).parents[1]
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
    assert open_("b", **keys).store.splits["train"].num_bytes > len(text[:cut].encode())
    tokens = set(json.loads(first)["model"]["vocab"])
    assert "xylophone" not in tokens
    write("a.txt", text[:-1000] + held_out[: len(text[-1000:].encode())])
    assert open_("c", **keys).tokenizer.data == first


def test_it_is_kept_in_the_run_and_used_from_there(project: Project, write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    open_("run")
    kept = project.root / "run/tokenizer.json"
    assert Tokenizer.load(kept).vocab_size == 300
    kept.write_bytes(train_tokenizer([prose(3000)], 280))
    assert open_("run").tokenizer.vocab_size == 280
    kept.write_bytes(train_tokenizer([prose(3000)], 400))
    with pytest.raises(ConfigError, match=r"data\.vocab_size = 300 .*400"):
        open_("run")
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


def test_words_are_bounded_when_training_and_when_encoding() -> None:
    text = "".join(np.random.default_rng(0).choice(list("abc"), 40_000))
    trained = Tokenizer(train_tokenizer([text], 3000), "long")
    assert max(map(len, json.loads(trained.data)["model"]["vocab"])) <= 128
    for run in ("a" * 1000, "!" * 1000, " " * 1000, "\n" * 1000, " " * 1000 + "\n" * 1000):
        words = module._SPLITTER.pre_tokenize_str(f"x{run}y")
        assert max(end - begin for _, (begin, end) in words) <= 2 * 128 + 1
        assert trained.decode(trained.encode(f"x{run}y")) == f"x{run}y"


def test_learning_from_text_without_spaces_takes_no_quadratic_time() -> None:
    """A word of 300,000 letters took minutes; the timeout of the suite would end this."""
    text = "".join(np.random.default_rng(1).choice(list("abcdefgh"), 300_000))
    assert Tokenizer(train_tokenizer([text], 280), "long").vocab_size == 280


@given(st.text(st.sampled_from("aB字1.!' \n\r\t\u3000"), max_size=30), st.integers(1, 60))
def test_divided_text_has_the_tokens_of_the_whole(text: str, times: int) -> None:
    text = text * times + "a" * 5 * times
    usual, module.PART_CHARACTERS = module.PART_CHARACTERS, LOOKS_AHEAD + 1 + times
    try:
        parts = list(OURS.divide(text))
    finally:
        module.PART_CHARACTERS = usual
    assert "".join(parts) == text
    assert len(parts) > 1 or len(text) <= 2 * (LOOKS_AHEAD + 1 + times)
    assert [token for part in parts for token in OURS.encode(part)] == OURS.encode(text)


def changed(**keys: object) -> bytes:
    return json.dumps(json.loads(OURS.data) | keys).encode()


def replacement(content: str, **pattern: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


FALLBACK: dict[str, Any] = {
    "model": {
        "type": "BPE",
        "vocab": {t: n for n, t in enumerate(["</s>", "a", "aa", "\u2581", *(f"<0x{b:02X}>" for b in range(256))])},
        "merges": ["a a"],
        "byte_fallback": True,
    },
    "pre_tokenizer": None,
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]},
    "decoder": None,
    "added_tokens": [],
}  # fmt: skip
"""As Llama 2's, Mistral's and Gemma's."""

BOUNDED: dict[str, dict[str, Any]] = {
    "ours": {},
    "characters": json.loads(CHARACTERS.data),
    "Qwen 2": {"normalizer": {"type": "NFC"}},
    "NFKC": {"normalizer": {"type": "NFKC"}},
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "shorter": {"normalizer": {"type": "Replace", "pattern": {"String": "aaaa"}, "content": "b"}},
    "byte fallback": FALLBACK,
}
SHRINKING = "a\u0345\u0313\u0300\u03b1\u0323\u0307s\u212a\U0001d400\u1100\u1161\u11a8 \u0130"


@settings(max_examples=30)
@given(st.text(st.sampled_from(SHRINKING) | st.characters(codec="utf-8"), max_size=60))
def test_a_text_has_no_fewer_tokens_than_its_bytes_allow(text: str) -> None:
    for name, keys in BOUNDED.items():
        tokenizer = _bounded(name)
        assert tokenizer.most_bytes is not None, keys
        assert len(text.encode()) <= tokenizer.most_bytes * len(tokenizer.encode(text)), name


@cache
def _bounded(name: str) -> Tokenizer:
    return Tokenizer(changed(**BOUNDED[name]), name)


def test_normalizers_shrink_no_character_more_than_the_table_says() -> None:
    forms: tuple[Literal["NFD", "NFKD"], ...] = ("NFD", "NFKD")
    sizes = {"NFD": 0.0, "NFKD": 0.0, "Lowercase": 0.0, "composed": 0.0}
    for number in [*range(0xD800), *range(0xE000, 0x20000), *range(0x2F800, 0x2FA20)]:
        character = chr(number)
        size = len(character.encode())
        for form in forms:
            parts = len(unicodedata.normalize(form, character).encode())
            sizes[form] = max(sizes[form], size / parts)
            sizes["composed"] = max(sizes["composed"], parts / size if form == "NFD" else 0)
        sizes["Lowercase"] = max(sizes["Lowercase"], size / len(character.lower().encode()))
    composed = sizes.pop("composed")  # what NFC and NFKC make of the parts of a character
    sizes |= {"NFC": composed * sizes["NFD"], "NFKC": composed * sizes["NFKD"]}
    assert {name: SHRINKAGE[name] for name in sizes} == sizes


UNBOUNDED: dict[str, dict[str, Any]] = {
    "strips": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    "removes": {"normalizer": replacement("", String="a")},
    "a pattern": {"normalizer": replacement("b", Regex="a+")},
    "drops spaces": {"pre_tokenizer": {"type": "Whitespace"}},
    "unknown text": {"model": {**FALLBACK["model"], "byte_fallback": False, "unk_token": "a", "fuse_unk": True}},
    "words": {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "a"}},
    "takes spaces": {"added_tokens": [{**json.loads(OURS.data)["added_tokens"][0], "rstrip": True}]},
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_tokenizer_that_drops_text_has_no_longest_token(name: str) -> None:
    assert Tokenizer(changed(**UNBOUNDED[name]), name).most_bytes is None


DOUBLED = {"type": "Sequence", "normalizers": [replacement("ee", String="e")] * 20}
LONG_TABLE = base64.b64encode(bytes(4) + b"x" * 10**6 + b"\0").decode()
HOSTILE = [
    (
        {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 2**31 - 1}, "unk_token": "a"}},
        "ids go",
    ),
    ({"normalizer": replacement("x" * 10**6, String="e")}, "its normalizer makes 1,000,000 bytes"),
    ({"normalizer": replacement("x" * 10**6, Regex="e")}, "its normalizer makes 1,000,001 bytes"),
    ({"normalizer": DOUBLED}, "its normalizer makes 1,048,576 bytes"),
    ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "its normalizer makes 1,000,001 bytes"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": LONG_TABLE}}, "its normalizer makes 1,000,000"),
    ({"decoder": replacement("x" * 10**6, String="e")}, "its decoder makes 1,000,000 bytes"),
    (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        "never end",
    ),
    ({"normalizer": replacement("", Regex="(a|a)*b")}, "matching its normalizer may never end"),
]


@pytest.mark.parametrize(("keys", "what"), HOSTILE, ids=[what for _, what in HOSTILE])
def test_hostile_tokenizers_are_refused(keys: dict[str, object], what: str) -> None:
    with pytest.raises(DataError, match=f"hostile.json: .*{what}") as caught:
        Tokenizer(changed(**keys), "hostile.json")
    assert caught.value.hint


def test_known_normalizers_are_accepted() -> None:
    known = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(" ", "\u2581"), normalizers.Prepend("\u2581")]
    )
    described = json.loads(foreign().to_str()) | {"normalizer": json.loads(known.__getstate__())}
    assert Tokenizer(json.dumps(described).encode(), "llama").encode("One two")


def test_what_the_library_raises_on_a_text_is_named() -> None:
    """Also a panic of its pattern, which is no Exception, from a pattern that was not found out before."""
    no_unknown = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "<none>"}
    tokenizer = Tokenizer(changed(added_tokens=[], model=no_unknown), "words.json")
    with pytest.raises(DataError, match=r"words.json fails"):
        tokenizer.encode("b")
    with pytest.raises(DataError, match=r"x.json fails") as caught, library_errors("x.json"):
        pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated").pre_tokenize_str("a" * 40 + "!")
    assert "backtracks without end" in caught.value.why
