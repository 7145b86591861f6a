"""Answers by a grammar always parse, whatever tokens are drawn among those that it allows."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.data.chat.assets import OWN_SPECIAL
from aifx.data.tokenizer import NUM_BYTES, Tokenizer, train_tokenizer
from aifx.serving.grammar import GrammarError, Grammars, TokenGrammar, ToolFormat, calls_grammar

TEXT = 'the whale {"name": "x", "arguments": {"city": [1, 2.5, true, null]}}' * 20
TOKENIZER = Tokenizer(
    train_tokenizer([TEXT], NUM_BYTES + len(OWN_SPECIAL) + 40, OWN_SPECIAL),
    "tokenizer.json",
    ends=("<|im_end|>", "<|endoftext|>"),
)
VOCAB_SIZE = 320  # of a model, whose last tokens nothing writes
GRAMMARS = Grammars(TOKENIZER, VOCAB_SIZE)

SCALARS = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 1200},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 8},
        {"type": "string", "pattern": "^[a-c]{2,4}$"},
        {"type": "string", "format": "date"},
        {"enum": ["é", "🐋", 3, None]},
        {"const": "x"},
    ]
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        required = sorted(properties)[::2]
        made = {"type": "object", "properties": properties, "required": required}
        return {**made, "additionalProperties": False}

    return st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3).map(closed)


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return inner.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 3})


def _choices(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, min_size=2, max_size=2).map(lambda parts: {"anyOf": parts})


SCHEMAS = st.recursive(SCALARS, lambda inner: _objects(inner) | _arrays(inner) | _choices(inner), max_leaves=6)


def allowed(grammar: TokenGrammar) -> list[int]:
    words = grammar.mask()
    assert len(words) == VOCAB_SIZE // 32
    return [token for token in range(VOCAB_SIZE) if int(words[token // 32]) >> token % 32 & 1]


def draw(grammar: TokenGrammar, chance: random.Random, limit: int = 400) -> str | None:
    """A text of random tokens, as an engine would write it; None if it grew too long."""
    ids: list[int] = []
    while not grammar.is_complete and len(ids) < limit:
        token = chance.choice(allowed(grammar))
        assert token < TOKENIZER.vocab_size
        if token in TOKENIZER.end_ids:
            break
        grammar.accept(token)
        ids.append(token)
    return TOKENIZER.decode(ids) if len(ids) < limit else None


@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_what_is_drawn_is_json_of_the_schema(schema: dict[str, Any], seed: int) -> None:
    text = draw(GRAMMARS.schema(schema), random.Random(seed))
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@given(seed=st.integers(0, 2**32), several=st.booleans(), tags=st.booleans())
def test_calls_name_a_tool_and_follow_its_schema(seed: int, several: bool, tags: bool) -> None:
    city = {"type": "object", "properties": {"city": {"$ref": "#/$defs/c"}}, "required": ["city"]}
    city |= {"additionalProperties": False, "$defs": {"c": {"enum": ["Köln", "Ulm"]}}}
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = [{"name": "get_city", "parameters": city}, {"name": "stop", "parameters": nothing}]
    form = ToolFormat.of_template("<tool_call>" if tags else "")
    text = draw(calls_grammar(GRAMMARS, form, tools, repeated=several), random.Random(seed))
    if text is None:
        return
    parts = text.split("</tool_call>\n") if tags else [text]
    assert several or len(parts) == 1
    for part in parts:
        if tags:
            assert part.startswith("<tool_call>\n")
        call = json.loads(part.removeprefix("<tool_call>\n").removesuffix("</tool_call>"))
        assert set(call) == {"name", "arguments"}
        jsonschema.validate(call["arguments"], next(t["parameters"] for t in tools if t["name"] == call["name"]))


def test_a_tag_that_is_a_special_token_is_written_as_one() -> None:
    special = ("<|endoftext|>", "<tool_call>", "</tool_call>")
    tokenizer = Tokenizer(train_tokenizer((), NUM_BYTES + 3, special), "tokenizer.json")
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    grammar = calls_grammar(grammars, ToolFormat("<tool_call>", "</tool_call>"), [{"name": "f"}], repeated=False)
    words = grammar.mask()
    assert [t for t in range(tokenizer.vocab_size) if int(words[t // 32]) >> t % 32 & 1] == [1]


BAD = [
    {"type": "strin"}, {"type": "string", "pattern": "(("}, {"$ref": "#/nowhere"}, {"properties": 3}, {"not": {}},
    {"type": "array", "uniqueItems": True}, {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
    {"enum": []}, {"$ref": "http://169.254.169.254/x"}, {"$ref": "file:///etc/passwd"},
]  # fmt: skip


@pytest.mark.parametrize("schema", BAD, ids=lambda schema: json.dumps(schema)[:30])
def test_a_schema_that_cannot_be_kept_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError):
        GRAMMARS.schema(schema)


def test_each_answer_has_a_state_of_its_own() -> None:
    one, other = GRAMMARS.schema({"const": "ab"}), GRAMMARS.schema({"const": "ab"})
    one.accept(TOKENIZER.encode('"')[0])
    assert allowed(one) != allowed(other)
    with pytest.raises(GrammarError):
        other.accept(TOKENIZER.encode("a")[0])
    assert not one.is_complete


def test_the_bytes_of_tokens() -> None:
    for text in ("é", "🐋", " a\n"):
        assert b"".join(map(GRAMMARS.token_bytes, TOKENIZER.encode(text))) == text.encode()
    assert GRAMMARS.token_bytes(0) == b"<|endoftext|>"
