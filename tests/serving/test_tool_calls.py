"""Calls of tools in the text of an answer, however it comes in pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifx.serving.grammar import CallArguments, CallBegin, Text, ToolCallParser, ToolFormat

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


def test_what_is_deeply_nested_is_text() -> None:
    """A model may write so, and Python's JSON gives up by RecursionError."""
    call = '{"name": ' + "[" * 100_000
    assert read(HERMES, [f"<tool_call>{call}</tool_call>"]) == (f"<tool_call>{call}</tool_call>", [])
    whole = "{" + '"a":{' * 5000 + "}" * 5001
    assert read(PLAIN, list(whole)) == (whole, [])  # character by character, in time that grows with its length
