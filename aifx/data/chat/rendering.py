"""Conversations as tokens, with the writer of each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from aifx.core.errors import DataError
from aifx.data.chat.rows import Conversation, Message
from aifx.data.chat.special_tokens import SpecialTokens
from aifx.data.chat.template import BEGIN, END, ChatTemplate
from aifx.data.tokenizer import Tokenizer

OTHERS, EARLIER, COMPLETION = 0, 1, 2
"""Writers of tokens: the template, a system or a user; the assistant in the prompt; the assistant in the completion."""

_INSERTED = "\U0010fff2"  # marks the beginning of the next message's text
_HINT = "put {% generation %} and {% endgeneration %} around what the assistant writes, or set data.chat_template"


class Example(NamedTuple):
    """A conversation as tokens. The target at place i is `ids[i + 1]`."""

    ids: np.ndarray  # int32 [tokens]
    writers: np.ndarray  # int8 [tokens]: OTHERS, EARLIER or COMPLETION


@dataclass(frozen=True)
class PromptWriter:
    """Writes conversations as text with a chat template. It is picklable, for a process of its own.

    Attributes:
        variables: the tokenizer's `bos_token`, `eos_token` and others, as the template reads them.
        today: the current day for the template; None if it must not ask for it.
    """

    special: SpecialTokens
    template: ChatTemplate
    variables: Mapping[str, str]
    today: date | None = None

    def prompt_text(self, messages: Sequence[Message], place: str = "the prompt", *, tools: Sequence[Any] = ()) -> str:
        """What a model reads before it answers, for `SpecialTokens.encode`.

        Args:
            tools: functions that the model may call, in OpenAI's format.

        Raises DataError if the template refuses the messages, or leaves out the tools.
        """
        plain = Conversation(tuple(messages), len(messages), place)
        text = self._text(replace(plain, tools=tuple(tools) or None), len(messages), asks=True)
        if tools and text == self._text(plain, len(messages), asks=True):
            why = f"the text is the same without them; template: {self.template.name}"
            raise DataError(f"{place}: the chat template leaves out the tools", why, "leave out the tools")
        return _bare(text)

    def _text(self, conversation: Conversation, count: int, *, asks: bool = False, inserted: int | None = None) -> str:
        """The first `count` messages, rendered.

        Args:
            asks: whether the beginning of an answer follows.
            inserted: index of a message to put a mark (`_INSERTED`) before.
        """
        place = conversation.place
        messages = self.special.shield(conversation.messages[:count], place)
        if inserted is not None:
            messages[inserted] = _with_mark(messages[inserted])
        render = partial(
            self.template.render,
            place=place,
            tools=self.special.shield(conversation.tools, place),
            add_generation_prompt=asks,
            variables=self.variables,
            today=self.today,
        )
        rendered = render(messages)
        _check_written(rendered, messages, render, place)
        return self.special.own(rendered)


@dataclass(frozen=True)
class ChatRenderer(PromptWriter):
    """A tokenizer with a chat template."""

    tokenizer: Tokenizer = field(kw_only=True)

    @property
    def writer(self) -> PromptWriter:
        """The part that needs no tokenizer."""
        return PromptWriter(self.special, self.template, self.variables, self.today)

    def prompt(self, messages: Sequence[Message], place: str = "the prompt", *, tools: Sequence[Any] = ()) -> list[int]:
        """The tokens of `prompt_text`. Raises DataError."""
        return self.special.encode_ids(self.prompt_text(messages, place, tools=tools))

    def example(self, conversation: Conversation) -> Example:
        """The tokens of a conversation.

        Raises DataError, which names its place, if the template refuses it, if the assistant's tokens are not exactly
        known, or if an answer has no end token: a model that is trained on it would never stop.
        """
        marked = self._text(conversation, len(conversation.messages))
        text = _bare(marked)
        encoding = self.special.encode(text)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        ids = np.array(encoding.ids, np.int32)
        if self.template.marks_answers:
            spans = self._marked(text, _marked_spans(marked, conversation, self.template.name), conversation)
        else:
            spans = [(answer, *self._span(text, conversation, answer, ids, offsets)) for answer in conversation.answers]
        writers = np.zeros(len(ids), np.int8)
        for place, (answer, begin, end) in enumerate(spans):
            inside = (offsets[:, 0] >= begin) & (offsets[:, 1] <= end)
            if across := np.flatnonzero(~inside & (offsets[:, 1] > begin) & (offsets[:, 0] < end)).tolist():
                first = slice(*offsets[across[0]])
                why = f"the token {text[first]!r} is in part the template's and in part the assistant's"
                raise self._inexact(conversation, answer, why)
            ends = place + 1 == len(spans) or answer != spans[place + 1][0]
            if ends and not np.isin(ids[inside], list(self.tokenizer.end_ids)).any():
                raise self._endless(conversation, answer)
            writers[inside] = COMPLETION if answer >= conversation.prompt_length else EARLIER
        return Example(ids, writers)

    def _marked(
        self, text: str, spans: list[tuple[int, int]], conversation: Conversation
    ) -> list[tuple[int, int, int]]:
        """Each span as (answer, begin, end).

        Templates may leave earlier answers unmarked, or mark two parts of one. Then spans before the completion count
        as parts of the last answer in the prompt, and the others as parts of the last answer of all.
        """
        answers = conversation.answers
        if len(spans) == len(answers):
            return [(answer, *span) for answer, span in zip(answers, spans, strict=True)]
        first = next((answer for answer in answers if answer >= conversation.prompt_length), answers[-1])
        completion = _shared_length(text, _bare(self._text(conversation, first, asks=True)))
        earlier = max((answer for answer in answers if answer < first), default=first)
        return [(earlier if end <= completion else answers[-1], begin, end) for begin, end in spans]

    def _span(
        self, text: str, conversation: Conversation, answer: int, ids: np.ndarray, offsets: np.ndarray
    ) -> tuple[int, int]:
        """The span of an answer: from the end of the prompt before it, to the first token that ends a text."""
        prompt = self._text(conversation, answer, asks=True)
        if not text.startswith(prompt):
            at = _shared_length(text, prompt)
            shown = self.special.spell(prompt[max(at - 20, 0) : at + 20])
            why = f"the messages before it are rendered differently if nothing follows, near {shown!r}"
            raise self._inexact(conversation, answer, why)
        begin, limit = len(prompt), len(text)
        if answer + 1 < len(conversation.messages):
            changed = self._text(conversation, len(conversation.messages), inserted=answer + 1)
            if changed == text:
                raise self._inexact(conversation, answer, "the message after it is left out")
            limit = _shared_length(text, changed)
        is_end = np.isin(ids, list(self.tokenizer.end_ids)) & (offsets[:, 0] >= begin) & (offsets[:, 1] <= limit)
        if not is_end.any():
            raise self._endless(conversation, answer)
        return begin, int(offsets[np.flatnonzero(is_end)[0], 1])

    def _inexact(self, conversation: Conversation, answer: int, why: str) -> DataError:
        what = f"{conversation.place}: it is not exact which tokens are messages[{answer}], an answer of the assistant"
        return DataError(what, f"{why}; template: {self.template.name}", _HINT)

    def _endless(self, conversation: Conversation, answer: int) -> DataError:
        ends = ", ".join(self.tokenizer.token(index) for index in sorted(self.tokenizer.end_ids))
        where = "inside {% generation %} " if self.template.marks_answers else ""
        why = f"the template {self.template.name} writes none of {ends} {where}after it: a model would never stop"
        what = f"{conversation.place}: no end token is trained with messages[{answer}], an answer of the assistant"
        return DataError(what, why, "name the token that ends an answer: data.end_tokens, or change data.chat_template")


def _check_written(
    rendered: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str], place: str
) -> None:
    """Raise DataError for a template that knows only content that is text, and writes other content as Python does."""
    hint = "leave the row out, or set data.chat_template to one that writes it"
    for index, message in enumerate(messages):
        if isinstance(content := message.get("content"), list) and str(content) in rendered:
            why = "it writes Python's [{'type': 'text', ... instead of the text"
            raise DataError(f"{place}: the chat template does not know messages[{index}].content, a list", why, hint)
        if message.get("tool_calls"):
            without = {key: value for key, value in message.items() if key != "tool_calls"}
            try:
                is_written = render([*messages[:index], without, *messages[index + 1 :]]) != rendered
            except DataError:
                is_written = True
            if not is_written:
                why = "the text is the same without them"
                raise DataError(f"{place}: the chat template leaves out messages[{index}].tool_calls", why, hint)


def _bare(text: str) -> str:
    return text.replace(BEGIN, "").replace(END, "")


def _shared_length(text: str, other: str) -> int:
    """The length of the longest prefix that two texts share."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(text), len(other)))


def _with_mark(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        first, *others = content
        return {**message, "content": [{**first, "text": _INSERTED + first["text"]}, *others]}
    return {**message, "content": _INSERTED + (content or "")}


def _marked_spans(marked: str, conversation: Conversation, name: str) -> list[tuple[int, int]]:
    """The spans between `BEGIN` and `END`, as offsets in the text without these marks."""
    spans: list[tuple[int, int]] = []
    begin, removed = None, 0
    for at, character in enumerate(marked):
        if character not in (BEGIN, END):
            continue
        if (character == BEGIN) != (begin is None):
            raise DataError(f"{conversation.place}: {{% generation %}} within another", f"template: {name}")
        if begin is None:
            begin = at - removed
        else:
            spans.append((begin, at - removed))
            begin = None
        removed += 1
    if begin is not None or not spans:
        what = f"{conversation.place}: it is not exact which tokens the assistant wrote"
        why = f"{name} has {{% generation %}}, and marks nothing in this conversation"
        raise DataError(what, why, "let the template put it around what the assistant writes")
    return spans
