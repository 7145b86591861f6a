"""Grammars that hold an answer to a JSON schema or to calls of tools, by llguidance, and the parser of such calls.

The formats of calls are those of the models that people serve (vLLM: `vllm/tool_parsers/hermes_tool_parser.py`,
`llama_tool_parser.py`): Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Llama 3
writes `{"name": ..., "parameters": {...}}`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import llguidance
import numpy as np

from aifx.data.tokenizer import Tokenizer

# At most eight spaces or newlines between two parts: a small model could write them for ever.
WHITESPACE = r"[ \n]{0,8}"
OPTIONS: Any = {"whitespace_pattern": WHITESPACE, "lenient": False}
MAX_COMPILED = 64
"""Grammars that are kept compiled."""

ANY_OBJECT = {"type": "object"}


class GrammarError(ValueError):
    """A schema that no grammar can be made of."""


class TokenGrammar:
    """The state of one answer's grammar. Implements `Grammar`."""

    def __init__(self, matcher: llguidance.LLMatcher, words: int, source: str) -> None:
        self._matcher, self._words, self.source = matcher, words, source

    def mask(self) -> np.ndarray:
        """uint32 [words]. Raises GrammarError if the grammar became too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]
        self._check()
        return bits

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_first_line(self._matcher.get_error()))


class Grammars:
    """Grammars over the tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: of the model. Raises GrammarError for a tokenizer that llguidance does not know."""
        size = max(vocab_size, tokenizer.vocab_size)
        try:
            self._tokens = llguidance.LLTokenizer(
                tokenizer.data.decode(), n_vocab=size, eos_token=sorted(tokenizer.end_ids)
            )
        except Exception as error:  # llguidance raises ValueError and bare Exception
            raise GrammarError(_first_line(str(error))) from None
        self._special = {tokenizer.token(index) for index in tokenizer.special_ids}
        self._words = -(-vocab_size // 32)
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._compiled = lru_cache(MAX_COMPILED)(self._compile)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token writes; the name of a special one."""
        return self._tokens.decode_bytes([token])

    def schema(self, schema: Mapping[str, Any]) -> TokenGrammar:
        """Texts that are JSON of this schema. Raises GrammarError."""
        try:
            source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=OPTIONS)
        except ValueError as error:
            raise GrammarError(_first_line(str(error))) from None
        return self.new(source)

    def wrapped(self, schemas: Sequence[Mapping[str, Any]], begin: str, end: str, *, repeated: bool) -> TokenGrammar:
        """Texts that are `begin`, JSON of one of the schemas, `end`; once, or also several times. Raises GrammarError.

        A special token in `begin` or `end` is matched as a token.
        """
        rules = [f"value{n}: %json {json.dumps({**schema, 'x-guidance': OPTIONS})}" for n, schema in enumerate(schemas)]
        one = " ".join((*self._literal(begin), "value", *self._literal(end)))
        more = f' ("\\n" {one})*' if repeated else ""
        choice = " | ".join(f"value{n}" for n in range(len(schemas)))
        lark = "\n".join([f"start: {one}{more}", f"value: {choice}", *rules])
        return self.new(llguidance.LLMatcher.grammar_from_lark(lark))

    def _literal(self, text: str) -> list[str]:
        """A text as parts of a rule."""
        special = next((name for name in self._special if name and name in text and name[0] == "<"), None)
        if special is None:
            return [json.dumps(text)] if text else []
        before, _, after = text.partition(special)
        return [*self._literal(before), special, *self._literal(after)]

    def new(self, source: str) -> TokenGrammar:
        """A grammar from the source of another. Raises GrammarError."""
        return TokenGrammar(self._compiled(source).deep_copy(), self._words, source)

    def _compile(self, source: str) -> llguidance.LLMatcher:
        is_wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            source, self._tokens, limits=self._limits
        )
        if is_wrong:
            raise GrammarError(_first_line(messages[0]))
        matcher = llguidance.LLMatcher(self._tokens, source, log_level=0, limits=self._limits)
        matcher.compute_bitmask()  # a grammar may be too large for its first token already
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        return matcher


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it cannot be used")


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
