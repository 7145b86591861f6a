"""Calls of tools within an answer: how a chat template has models write them, and how they are read back.

The formats are those of the models that people serve (vLLM: `vllm/tool_parsers/hermes_tool_parser.py`,
`llama_tool_parser.py`): Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Llama 3
writes `{"name": ..., "parameters": {...}}`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from aifx.serving.grammar import ANY_OBJECT, Grammars, TokenGrammar


@dataclass(frozen=True)
class ToolFormat:
    """The format of a call: `begin`, a JSON object with `name` and `arguments_key`, `end`."""

    begin: str
    end: str
    arguments_key: str = "arguments"

    @classmethod
    def of_template(cls, source: str) -> ToolFormat:
        """The format that a chat template asks for."""
        if "<tool_call>" in source:
            return cls("<tool_call>", "</tool_call>")
        return cls("", "", "parameters" if '"parameters"' in source else "arguments")


def calls_grammar(
    grammars: Grammars, form: ToolFormat, tools: Sequence[Mapping[str, Any]], *, repeated: bool
) -> TokenGrammar:
    """Calls of these functions (name, parameters), and nothing else. Raises GrammarError."""
    schemas = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, form.arguments_key: tool.get("parameters") or ANY_OBJECT},
            "required": ["name", form.arguments_key],
            "additionalProperties": False,
            **_definitions(tool.get("parameters") or {}),
        }
        for tool in tools
    ]
    if not form.begin:
        return grammars.wrapped(schemas, "", "", repeated=False)
    return grammars.wrapped(schemas, f"{form.begin}\n", f"\n{form.end}", repeated=repeated)


def _definitions(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Definitions that `#/$defs/...` names stay at the root of the schema."""
    return {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}


class Text(NamedTuple):
    """A piece of the answer that is no call."""

    text: str


class CallBegin(NamedTuple):
    call: int
    id: str
    name: str


class CallArguments(NamedTuple):
    """A piece of a call's arguments."""

    call: int
    piece: str


Event: TypeAlias = Text | CallBegin | CallArguments


class ToolCallParser:
    """Divides the text of an answer, as it comes, into text and calls. What turns out to be no call is text."""

    def __init__(self, form: ToolFormat, names: Sequence[str]) -> None:
        self._form, self._names = form, frozenset(names)
        self._end = form.end or "}"  # of a call, after its arguments
        self._buffer = ""
        self._step = self._read_text
        self._object = self._arguments = _ObjectEnd()
        self.calls = 0

    def feed(self, text: str) -> Iterator[Event]:
        """The parts of the answer that no later text can change."""
        self._buffer += text
        while self._buffer:
            before, size = self._step, len(self._buffer)
            yield from self._step()
            if self._step == before and len(self._buffer) == size:
                return

    def finish(self) -> Iterator[Event]:
        """The rest of the answer, when it has ended."""
        left, self._buffer = self._buffer, ""
        if self._step == self._read_head:
            yield from self._text(self._form.begin + left)
        elif self._step == self._read_text:
            yield from self._text(left)

    def _text(self, text: str) -> Iterator[Event]:
        if text and not (self.calls and text.isspace()):  # spaces between calls are no part of the answer
            yield Text(text)

    def _read_text(self) -> Iterator[Event]:
        begin = self._form.begin
        if not begin:  # a bare object is a call only if the answer begins with it
            if first := self._buffer.lstrip()[:1]:
                self._step = self._read_head if first == "{" and not self.calls else self._read_rest
                self._object = _ObjectEnd()
            return
        at = self._buffer.find(begin)
        if at >= 0:
            yield from self._text(self._buffer[:at].rstrip())
            self._buffer, self._step = self._buffer[at + len(begin) :], self._read_head
            return
        held = next((n for n in range(len(begin) - 1, 0, -1) if self._buffer.endswith(begin[:n])), 0)
        clear = self._buffer[: len(self._buffer) - held].rstrip()  # spaces before a call are no part of the answer
        self._buffer = self._buffer[len(clear) :]
        yield from self._text(clear)

    def _read_rest(self) -> Iterator[Event]:
        """No call follows."""
        text, self._buffer = self._buffer, ""
        yield from self._text(text)

    def _read_head(self) -> Iterator[Event]:
        """The beginning of a call, up to its arguments."""
        if (head := _HEAD.match(self._buffer)) is not None and head[1] in self._names:
            yield self._begin(head[1])
            self._buffer, self._step = self._buffer[head.end() :], self._read_arguments
            self._arguments = _ObjectEnd()
            return
        whole = self._buffer.find(self._form.end) if self._form.end else self._object.find_more(self._buffer)
        if whole < 0:
            return
        text, rest = self._buffer[:whole], self._buffer[whole + len(self._form.end) :]
        self._buffer, self._step = rest, self._read_text
        if (call := self._parse(text)) is None:
            yield from self._text(self._form.begin + text + self._form.end)
            if not self._form.begin:
                self._step = self._read_rest
            return
        begin = self._begin(call[0])
        yield from (begin, CallArguments(begin.call, call[1]))

    def _read_arguments(self) -> Iterator[Event]:
        end = self._arguments.find(self._buffer)
        piece, self._buffer = self._buffer[:end], "" if end is None else self._buffer[end:]
        yield CallArguments(self.calls - 1, piece)
        if end is not None:
            self._step = self._skip_end

    def _skip_end(self) -> Iterator[Event]:
        before, mark, after = self._buffer.partition(self._end)
        if mark:
            self._buffer, self._step = after, self._read_text
        else:  # a part of the mark may be at the end
            self._buffer = before[-len(self._end) :]
        yield from ()

    def _begin(self, name: str) -> CallBegin:
        self.calls += 1
        return CallBegin(self.calls - 1, f"call_{secrets.token_hex(12)}", name)

    def _parse(self, text: str) -> tuple[str, str] | None:
        """The name and the arguments of a call whose keys are in another order."""
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or call.get("name") not in self._names:
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        return call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)


_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([\w-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class _ObjectEnd:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self._seen = 0

    def find_more(self, text: str) -> int:
        """The place after the object's last brace in a text that grows with each call; -1 if it is not there yet."""
        start, self._seen = self._seen, len(text)
        end = self.find(text[start:])
        return -1 if end is None else start + end

    def find(self, text: str) -> int | None:
        """The place after the object's last brace, if it is in this piece."""
        for at, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None
