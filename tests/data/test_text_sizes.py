"""The bytes of a text's tokens add up to the text, whatever the tokenizer adds, drops or replaces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from prose import prose
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from aifx.core.project import Project
from aifx.data.splits import Split
from aifx.data.text import TextData, TextFormat
from aifx.data.tokenizer import END_OF_TEXT, Tokenizer, character_tokenizer, text_sizes, train_tokenizer

Open = Callable[..., TextData]
SPECIAL = ["<unk>", "<s>", "</s>"]
TEXT = (
    " \n\tIt  costs 1,851 €…   naïve NAÏVE ﬁnance e\u0301 鲸鱼鲸 \U0001f40b\U0001f433 don't <x>  end\r\n\r\n"
    "\x00\x07 \u200b\ufeff unbelievableunbelievable\u3000Ω≈ç√ Ⅻ ㎏ ﷺ\n" + prose(200) + "   \n \t "
)
UNICODE = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
NORMAL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(pre_tokenizer: Any, **parts: Any) -> tokenizers.Tokenizer:
    """A BPE over bytes, with the post-processor of GPT-2, which takes spaces out of offsets."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    for name, value in parts.items():
        setattr(made, name, value)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([prose(500)], trainer)
    return made


def spelled(normalizer: Any, pre_tokenizer: Any = None) -> tokenizers.Tokenizer:
    """A BPE of SentencePiece: `▁` for a space, and bytes for what is not in its vocabulary."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdeilnorstu\n", "▁a", "on", "▁▁"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "a"), ("o", "n"), ("▁", "▁")]
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    return made


def trained(model: Any, trainer: Any, normalizer: Any, pre_tokenizer: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    made.train_from_iterator([prose(500)], trainer)
    return made


def with_tokens_that_strip() -> tokenizers.Tokenizer:
    made = byte_level(NORMAL)
    made.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True)])
    return made


def kinds() -> Iterator[tuple[str, Callable[[], bytes | tokenizers.Tokenizer]]]:
    """Names, and what makes them. In this order they are made as those of aifx (two), GPT-2, SmolLM2, Qwen, RoBERTa,
    Phi-3, Llama 2, Gemma, T5, SentencePiece's BPE, BERT, word2vec and CLIP."""
    yield "byte-level", lambda: train_tokenizer([prose(500)], 400)
    yield "characters", lambda: character_tokenizer([prose(500)], None)
    yield "byte-level-words", lambda: byte_level(NORMAL)
    yield "digits", lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), NORMAL]))
    split = pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated")
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    yield "nfc", lambda: byte_level(pre_tokenizers.Sequence([split, bare]), normalizer=normalizers.NFC())
    yield "prefix-space", lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    yield "stripping-tokens", with_tokens_that_strip
    mark = normalizers.Replace(" ", "▁")
    yield "byte-fallback", lambda: spelled(normalizers.Sequence([normalizers.Prepend("▁"), mark]))
    yield "byte-fallback-split", lambda: spelled(mark, pre_tokenizers.Split(" ", "merged_with_previous"))
    options = {"special_tokens": SPECIAL, "show_progress": False}
    unigram = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **options)
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    cleaned = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces, normalizers.Strip()])
    yield "unigram", lambda: trained(models.Unigram(), unigram, cleaned, pre_tokenizers.Metaspace())
    bpe = trainers.BpeTrainer(vocab_size=300, **options)
    yield "metaspace", lambda: trained(models.BPE(unk_token="<unk>"), bpe, UNICODE, pre_tokenizers.Metaspace())
    wordpiece = trainers.WordPieceTrainer(vocab_size=200, **options)
    bert = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    pieces = models.WordPiece(unk_token="<unk>", max_input_chars_per_word=20)
    yield "wordpiece", lambda: trained(pieces, wordpiece, bert, pre_tokenizers.BertPreTokenizer())
    words, whole = trainers.WordLevelTrainer(vocab_size=100, **options), models.WordLevel(unk_token="<unk>")
    yield "words", lambda: trained(whole, words, None, pre_tokenizers.WhitespaceSplit())
    suffixed = trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="</w>", **options)
    clip = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    stripped = normalizers.Sequence([normalizers.StripAccents(), normalizers.Strip()])
    removed = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    yield "suffix", lambda: trained(clip, suffixed, stripped, removed)


MADE = dict(kinds())


@pytest.fixture
def made(request: pytest.FixtureRequest, project: Project) -> Tokenizer:
    found = MADE[request.param]()
    data = found if isinstance(found, bytes) else found.to_str().encode()
    (project.root / "tokenizer.json").write_bytes(data)
    return Tokenizer(data, request.param)


def counted(data: TextData, split: Split) -> int:
    source = data.source(split, 4, seed=None)
    batches = (source.read(step, slice(None)) for step in range(source.num_batches or 0))
    return sum(data.counts(batch)["bytes"] for batch in batches)


@pytest.mark.parametrize("made", MADE, indirect=True)
def test_the_bytes_of_a_split_are_those_of_its_text(made: Tokenizer, project: Project, open_: Open) -> None:
    """Sizes of a file, of each split that is held out, and of the training split."""
    text = TEXT + prose(400, 1)
    (project.root / "data/a.txt").write_bytes(text.encode())
    rows = [*(prose(20, seed) for seed in range(20)), " \n ", "鲸", "\t"]
    (project.root / "data/b.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    sizes = {"a.txt": len(text.encode()), "b.jsonl": sum(len(row.encode()) for row in rows)}
    named = {"train": ("data/a.txt", "data/b.jsonl"), "tokenizer": "tokenizer.json", "vocab_size": None}
    data = open_(eval_stride=5, validation_fraction=0.3, test_fraction=0.3, **named)
    found: dict[Split, int] = {split: counted(data, split) for split in data.store.splits}
    assert found == {split: tokens.num_bytes for split, tokens in data.store.splits.items()}
    assert sum(found.values()) == sum(sizes.values())
    by_document = open_(split="document", validation_fraction=0.3, test_fraction=0.3, **named)  # splits share batches
    assert sum(counted(by_document, split) for split in by_document.store.splits) == sum(sizes.values())
    for packing in ("stream", "documents"):
        form = TextFormat(data.section.model_copy(update={"packing": packing}), data.spec, data.tokenizer)
        for name, size in sizes.items():
            assert counted(form.open_file(project.root / "data" / name), "test") == size


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_is_divided_among_its_tokens(text: str) -> None:
    for tokenizer in SOME:
        (encoding,) = tokenizer.encode_batch([text], offsets=True)
        sizes = text_sizes(text, encoding)
        assert len(sizes) == len(encoding.ids)
        assert (sizes >= 0).all()
        assert sizes.sum() == (len(text.encode()) if encoding.ids else 0)


SOME = [Tokenizer(MADE[kind]().to_str().encode(), kind) for kind in ("nfc", "byte-fallback", "wordpiece")]


@pytest.mark.parametrize(
    ("kind", "text", "texts"),
    [
        ("digits", "in 12 é", ["i", "n", " ", "1", "2", " é"]),
        ("nfc", "e\u0301a", ["e\u0301", "a"]),
        ("metaspace", "A  é", ["A", " ", " é"]),
        ("wordpiece", " Do  é!\n", [" Do  ", "é", "!\n"]),
    ],
)
def test_each_token_has_the_bytes_of_its_own_text(kind: str, text: str, texts: list[str]) -> None:
    (encoding,) = Tokenizer(MADE[kind]().to_str().encode(), kind).encode_batch([text], offsets=True)
    assert text_sizes(text, encoding).tolist() == [len(part.encode()) for part in texts], encoding.tokens


def test_the_bytes_of_a_character_are_those_of_its_tokens() -> None:
    (encoding,) = SOME[1].encode_batch(["a鲸é"], offsets=True)
    assert encoding.tokens == ["▁a", "<0xE9>", "<0xB2>", "<0xB8>", "<0xC3>", "<0xA9>"]
    assert text_sizes("a鲸é", encoding).tolist() == [1] * 6


def test_a_token_that_ends_documents_and_is_in_them_has_the_bytes_of_text(project: Project, open_: Open) -> None:
    (project.root / "tokenizer.json").write_bytes(byte_level(NORMAL).to_str().encode())
    text = "\n".join(prose(5, seed) for seed in range(60))
    (project.root / "data/a.txt").write_text(text)
    data = open_(tokenizer="tokenizer.json", vocab_size=None, end_tokens=("Ċ",))
    assert sum(counted(data, split) for split in data.store.splits) == len(text.encode())


@pytest.mark.parametrize("add", ["add_tokens", "add_special_tokens"])
def test_an_added_token_that_the_model_has_as_well(add: str) -> None:
    """The text "Ġthe" is the added token, and the text " the" is the same token of the model."""
    made = byte_level(NORMAL)
    token = max((token for token in made.get_vocab() if token[0] == "Ġ" and token[1:].isascii()), key=len)
    getattr(made, add)([token])
    tokenizer = Tokenizer(made.to_str().encode(), add)
    text = f"{token} {token[1:]}"
    (encoding,) = tokenizer.encode_batch([text], offsets=True)
    assert tokenizer.token(encoding.ids[-1]) == token
    by_id = tokenizer.token_bytes()[encoding.ids] if tokenizer.is_byte_level else text_sizes(text, encoding)
    assert by_id.sum() == len(text.encode())


@pytest.mark.parametrize("made", ["wordpiece"], indirect=True)
def test_damaged_sizes_are_found_and_made_again(
    made: Tokenizer, project: Project, open_: Open, logged: list[str]
) -> None:
    (project.root / "data/a.txt").write_text(prose(3000))
    data = open_(tokenizer="tokenizer.json", vocab_size=None)
    whole, path = counted(data, "test"), data.store.path / "test.sizes.npy"
    again = open_("other", tokenizer="tokenizer.json", vocab_size=None)
    logged.clear()
    damaged = bytearray(path.read_bytes())
    damaged[-4] ^= 1
    path.write_bytes(damaged)
    assert counted(again, "test") == whole
    assert [str(data.store.path) in line for line in logged] == [True, False]
    assert not (data.store.path / "train.sizes.npy").exists()
