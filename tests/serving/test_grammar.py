"""Answers by a grammar always parse, whatever tokens are drawn; calls of tools are found however the text comes."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifx.data.chat.assets import OWN_SPECIAL
from aifx.data.tokenizer import NUM_BYTES, Tokenizer, train_tokenizer
from aifx.serving.grammar import (
    CallArguments,
    CallBegin,
    GrammarError,
    Grammars,
    Text,
    TokenGrammar,
    ToolCallParser,
    ToolFormat,
    calls_grammar,
)

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


HERMES = ToolFormat.of_template("... <tool_call> ...")
LLAMA = ToolFormat.of_template('{"name": function name, "parameters": ...}')
PLAIN = ToolFormat.of_template("{{ messages }}")


def read(form: ToolFormat, pieces: list[str], names: tuple[str, ...] = ("f", "g")) -> tuple[str, list[tuple[str, str]]]:
    """The text, and each call's name and arguments."""
    parser, text, calls = ToolCallParser(form, names), "", []
    events = [event for piece in pieces for event in parser.feed(piece)]
    for event in [*events, *parser.finish()]:
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, CallBegin):
            assert event.call == len(calls)
            calls.append([event.name, ""])
        else:
            assert isinstance(event, CallArguments)
            calls[event.call][1] += event.piece
    return text, [(name, arguments) for name, arguments in calls]


def cuts(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


CASES = {
    "a call": (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", '{"a": 1}')]),
    "after a text": (HERMES, 'Well.\n\n<tool_call>{"name":"f","arguments":{}}</tool_call>', "Well.", [("f", "{}")]),
    "two calls": (
        HERMES,
        '<tool_call>{"name":"f","arguments":{"x":"}<"}}</tool_call>\n<tool_call>{"name":"g","arguments":{}}</tool_call>\n',
        "",
        [("f", '{"x":"}<"}'), ("g", "{}")],
    ),
    "another order": (HERMES, '<tool_call>{"arguments":{"a":2},"name":"g"}</tool_call>', "", [("g", '{"a": 2}')]),
    "a name that is unknown": (HERMES, '<tool_call>{"name":"h","arguments":{}}</tool_call>', None, []),
    "no JSON": (HERMES, "<tool_call>f(1)</tool_call> and on", None, []),
    "no end": (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": [1', "", [("f", '{"a": [1')]),
    "almost a tag": (HERMES, "x <tool_cal", "x <tool_cal", []),
    "text": (HERMES, "1 < 2\n\n and 3 > 2", "1 < 2\n\n and 3 > 2", []),
    "Llama's": (LLAMA, '{"name": "f", "parameters": {"q": "\\"}"}}', "", [("f", '{"q": "\\"}"}')]),
    "bare, with spaces": (PLAIN, ' {"name": "f", "arguments": {}} ', "", [("f", "{}")]),
    "bare, but another object": (PLAIN, '{"x": 1} is JSON', '{"x": 1} is JSON', []),
    "bare, but text": (PLAIN, 'A {"name": "f", "arguments": {}}', 'A {"name": "f", "arguments": {}}', []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@given(places=st.lists(st.integers(0, 200), max_size=20))
def test_calls_are_found_wherever_the_text_is_cut(case: str, places: list[int]) -> None:
    form, answer, text, calls = CASES[case]
    assert read(form, cuts(answer, places)) == (answer if text is None else text, calls)


@given(
    answer=st.lists(
        st.sampled_from([*'<tool_call>/{}":, \nfx\\', "<tool_call>", "</tool_call>", '{"name": "f", "arguments": ']),
        max_size=40,
    ).map("".join),
    places=st.lists(st.integers(0, 300), max_size=20),
)
def test_no_text_raises_and_pieces_change_nothing(answer: str, places: list[int]) -> None:
    for form in (HERMES, LLAMA, PLAIN):
        assert read(form, cuts(answer, places)) == read(form, [answer])


@settings(max_examples=30)
@given(value=st.dictionaries(st.text(), st.recursive(st.text() | st.integers() | st.none(), st.lists)), key=st.text())
def test_arguments_come_through_whole(value: dict[str, object], key: str) -> None:
    call = json.dumps({"name": "f", "arguments": {**value, key: "</tool_call"}})
    _, calls = read(HERMES, list(f"<tool_call>\n{call}\n</tool_call>"))
    assert json.loads(calls[0][1]) == {**value, key: "</tool_call"}


@pytest.mark.slow
def test_what_is_deeply_nested_is_text() -> None:
    """A model may write so, and Python's JSON gives up by RecursionError."""
    call = '{"name": ' + "[" * 100_000
    assert read(HERMES, [f"<tool_call>{call}</tool_call>"]) == (f"<tool_call>{call}</tool_call>", [])
    whole = "{" + '"a":{' * 5000 + "}" * 5001
    assert read(PLAIN, list(whole)) == (whole, [])  # character by character, in time that grows with its length
