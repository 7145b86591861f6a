"""Rows of chat data: conversations, and pairs of answers of which one is preferred.

A row of a .jsonl or .parquet file has one of these sets of fields, and maybe `tools`, which a template may show:

    messages                    a conversation: [{"role": "user", "content": "..."}, ...]
    prompt, completion          texts, or lists of messages
    conversations               a conversation as in ShareGPT's data: [{"from": "human", "value": "..."}, ...]
    instruction, input, output  texts, as in Alpaca's data
    prompt, chosen, rejected    the same with two completions
    chosen, rejected            two conversations that begin alike

`read_chats` gives a `Conversation` for the first four and a `Preference` for the others, which DPO reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

from aifx.core.errors import DataError, did_you_mean
from aifx.core.parsing import parse_json
from aifx.data.names import CHAT, CLUSTER, ROW, SPLIT
from aifx.data.readers.rows import Row, read_rows
from aifx.data.readers.sources import SourceFile

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Fixed, since a template may make a role part of a special token."""

WRITERS = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}
"""Roles by `from` of ShareGPT's data."""

FIELDS = ("messages", "prompt", "completion", "chosen", "rejected", "conversations", "instruction", "output")
"""The fields of conversations and preferences. A row has one or more of them."""

BEGIN, END = "\U0010fff0", "\U0010fff1"
"""Private-use characters that replace `{% generation %}` and `{% endgeneration %}` in rendered text."""

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A conversation of a row.

    Attributes:
        messages: with `role`, `content` (text, a list of parts, or None beside `tool_calls`) and other fields of it.
        prompt_length: number of messages in the prompt; the assistant's messages after them are the completion.
        place: the file and line, for error messages.
        split, cluster: those that the row has in a version of a data set.
        number: of the line, in a file without lines of the row, from 1; 0 if it is of no file.
        key_length: number of messages in the key; all if None.
    """

    messages: tuple[Message, ...]
    prompt_length: int
    place: str
    tools: tuple[Any, ...] | None = None
    split: Any = None
    cluster: Any = None
    number: int = 0
    key_length: int | None = None

    @property
    def answers(self) -> list[int]:
        """Indices of the assistant's messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]

    @cached_property
    def key(self) -> bytes:
        """Equal for equal conversations, whatever their files and lines."""
        return json.dumps([self.messages[: self.key_length], self.tools], sort_keys=True, default=str).encode()


def content_text(message: Message) -> str:
    """The text of a message, of all its parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Preference(NamedTuple):
    """Two answers to one conversation: `prompt_length` messages are the same in both."""

    chosen: Conversation
    rejected: Conversation


def read_chats(file: SourceFile) -> Iterator[Conversation | Preference]:
    """The rows of a file in order. Raises DataError that names the file and the line."""
    for row in read_rows(file):
        found, number = parse_row(row), row.line or row.number
        known: dict[str, Any] = {"split": row.values.get(SPLIT), "cluster": row.values.get(CLUSTER), "number": number}
        if isinstance(found, Preference):
            yield Preference(*(replace(answer, **known) for answer in found))
        else:
            yield replace(found, **known)


def read_conversations(file: SourceFile) -> Iterator[Conversation]:
    """The rows of a file, each a conversation. Raises DataError for a preference, too."""
    for found in read_chats(file):
        if isinstance(found, Preference):
            why = "supervised fine-tuning reads messages, or prompt and completion"
            raise DataError(f"{found.chosen.place}: the row has two answers", why, "rename chosen to completion")
        if not found.answers:
            why = "there is nothing to learn from it"
            raise DataError(f"{found.place}: no message of the assistant", why, "leave the row out")
        yield found


def read_pairs(file: SourceFile) -> Iterator[Conversation]:
    """The chosen and the rejected answer of each row in turn. Raises DataError for a row without two answers."""
    for found in read_chats(file):
        if not isinstance(found, Preference):
            why = "a preference has the fields prompt, chosen and rejected, or chosen and rejected"
            hint = 'kind = "chat"    (below [task], and below [data] if it is set there)'
            raise DataError(f"{found.place}: the row has one answer", why, hint)
        for answer in found:
            if len(answer.messages) == answer.prompt_length or answer.messages[-1]["role"] != "assistant":
                why = "both answers end with a message of the assistant"
                raise DataError(f"{answer.place}: no answer to compare", why, "leave the row out")
            yield replace(answer, key_length=answer.prompt_length)  # both answers are in the same split


def parse_row(row: Row) -> Conversation | Preference:
    """The conversation or preference in a row, also of a version of chats. Raises DataError that names its place."""
    values = {name: value for name, value in _values(row).items() if value is not None}
    tools = _tools(values.get("tools"), row.place)
    if "conversations" in values and "messages" not in values:
        values["messages"] = _shared_messages(values["conversations"], f"{row.place}: conversations")
    elif "instruction" in values and "output" in values:
        values |= _instructed(values, row.place)
    if "messages" in values:
        messages = _messages(values["messages"], f"{row.place}: messages")
        found = Conversation(messages, len(messages), row.place, tools)
        return replace(found, prompt_length=max(found.answers, default=len(messages)))
    if "prompt" in values and "completion" in values:
        return _completed(values, "completion", row.place, tools)
    if "chosen" not in values or "rejected" not in values:
        odd = [name for name in values if name not in FIELDS and name != "tools"]
        why = did_you_mean(odd[0], FIELDS) if odd else f"it has {', '.join(values) or 'nothing'}"
        hint = 'a row is {"messages": [...]}, or {"prompt": "...", "completion": "..."}'
        raise DataError(f"{row.place}: not a conversation", why, hint)
    if "prompt" in values:
        return Preference(*(_completed(values, name, row.place, tools) for name in ("chosen", "rejected")))
    chosen, rejected = (_messages(values[name], f"{row.place}: {name}") for name in ("chosen", "rejected"))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if not shared or shared in (len(chosen), len(rejected)):
        why = "both begin with the same messages, and each ends with an answer of its own"
        raise DataError(f"{row.place}: chosen and rejected are no pair", why, "leave the row out")
    return Preference(*(Conversation(one, shared, row.place, tools) for one in (chosen, rejected)))


def _values(row: Row) -> Mapping[str, Any]:
    """The fields of a row: in a version of chats, those in its JSON."""
    text = row.values.get(CHAT)
    if ROW in row.values and isinstance(text, str):
        with suppress(ValueError):  # a table has a column of this name
            if isinstance(values := parse_json(text), dict):
                return values
    return row.values


def _completed(values: Mapping[str, Any], name: str, place: str, tools: tuple[Any, ...] | None) -> Conversation:
    """A prompt with one of its completions; text becomes a message."""

    def messages(field: str, role: str) -> tuple[Message, ...]:
        value = values[field]
        as_list = [{"role": role, "content": value}] if isinstance(value, str) else value
        return _messages(as_list, f"{place}: {field}")

    prompt, completion = messages("prompt", "user"), messages(name, "assistant")
    return Conversation((*prompt, *completion), len(prompt), place, tools)


def _shared_messages(value: Any, where: str) -> Any:
    """ShareGPT's messages with the fields of ours; what is not a list of them is left for `_messages` to refuse."""
    messages = []
    for index, message in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(message, Mapping) or "from" not in message:
            return value
        if (role := WRITERS.get(str(message["from"]))) is None:
            why = f"aifx reads {', '.join(WRITERS)}"
            hint = 'write it as {"messages": [{"role": "user", "content": "..."}]}'
            raise DataError(f"{where}[{index}].from = {message['from']!r} is not known", why, hint)
        messages.append({"role": role, "content": message.get("value")})
    return messages or value


def _instructed(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The prompt and completion of Alpaca's fields: the input follows the instruction after an empty line."""
    texts = [values["instruction"], values.get("input") or ""]
    for name, text in zip(("instruction", "input"), texts, strict=True):
        if not isinstance(text, str):
            raise DataError(f"{place}: {name} is not text", f"it is {type(text).__name__}", "leave the row out")
    if values.get("history"):
        hint = 'write it as {"messages": [{"role": "user", "content": "..."}]}'
        raise DataError(f"{place}: history is not read", "the row has earlier messages", hint)
    prompt = [{"role": "user", "content": "\n\n".join(text for text in texts if text)}]
    if values.get("system"):
        prompt.insert(0, {"role": "system", "content": values["system"]})
    return {"prompt": prompt, "completion": values["output"]}


def _tools(value: Any, place: str) -> tuple[Any, ...] | None:
    if isinstance(value, str):  # Parquet has no column of any JSON
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{place}: tools is not JSON", str(error), "leave the row out") from None
    if value is None or isinstance(value, list):
        _check_unicode(json.dumps(value, ensure_ascii=False, default=str), f"{place}: tools", "leave the row out")
        return tuple(value) if value else None
    raise DataError(f"{place}: tools is not a list", f"it is {type(value).__name__}", "leave the row out")


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    hint = 'a message is {"role": "user", "content": "..."}'
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        why = "it is empty" if isinstance(value, list) else f"it is {type(value).__name__}"
        raise DataError(f"{where} is not a list of messages", why, hint)
    messages = []
    for index, message in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(message, Mapping):
            raise DataError(f"{place} is not a message", f"it is {type(message).__name__}", hint)
        role = message.get("role")
        if role not in ROLES:
            why = did_you_mean(role, ROLES) if isinstance(role, str) else f"roles are {', '.join(ROLES)}"
            raise DataError(f"{place}.role = {role!r} is not a role", why, hint)
        # A column of Parquet gives each message all fields that any has.
        kept = {key: part for key, part in message.items() if part is not None or key == "content"}
        _check_content(kept, place, hint)
        for key in kept.keys() - {"role", "content"}:  # such as the arguments of tool calls
            _check_unicode(json.dumps({key: kept[key]}, ensure_ascii=False, default=str), f"{place}.{key}", hint)
        messages.append(kept)
    return tuple(messages)


def _check_content(message: Mapping[str, Any], place: str, hint: str) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if content == []:
        raise DataError(f"{place}.content is not text", "it is an empty list", hint)
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind != "text":
            raise DataError(f"{place}.content has a part that is not text", f"it is {kind}", hint)
        if not isinstance(text := part.get("text"), str):
            raise DataError(f"{place}.content is not text", f"it is {type(text).__name__}", hint)
        _check_unicode(text, f"{place}.content", hint)


def _check_unicode(text: str, what: str, hint: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"half a surrogate pair at character {error.start}"
        raise DataError(f"{what} is not Unicode text", why, hint) from None
