"""Text from tokens, piece by piece: whole characters, and nothing held back for what is no text."""

from __future__ import annotations

import pytest
from written import stream_text

from aifx.data.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(["the whale Ahab sea harpoon boat " * 50], 300), "tokenizer.json")


@pytest.mark.parametrize(
    "text", ["sea and sea", "Ægir—Ægir 🐋🐋 whale", "日本語の鯨", "🐋", "\N{REPLACEMENT CHARACTER}x"]
)
def test_text_streams_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    for cut in range(len(text) + 1):
        prompt, rest = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
        pieces = list(stream_text(tokenizer, prompt, rest))
        assert "".join(pieces) == text[cut:]
        assert all(pieces)
    assert "".join(stream_text(tokenizer, [], [*rest, tokenizer.eos_id, *tokenizer.encode("more")])) == text[cut:]


def test_bytes_that_are_no_text_do_not_hold_the_stream_back(tokenizer: Tokenizer) -> None:
    broken = tokenizer.encode("🐋")[:-1]
    assert "".join(stream_text(tokenizer, [], [*broken, *tokenizer.encode(" sea")])).endswith(" sea")
    assert "".join(stream_text(tokenizer, [], broken))


def test_bytes_without_end_that_are_no_text_are_written(tokenizer: Tokenizer) -> None:
    """Waiting for their last byte, each would be decoded again with every token."""
    tail = tokenizer.encode("🐋")[-1:]
    for count in range(40, 60):  # however they are cut, the characters between them are whole
        pieces = list(stream_text(tokenizer, [], [*tail * count, *tokenizer.encode("🐋 sea")]))
        assert len(pieces) > 2
        assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * count + "🐋 sea"
