"""Conversations as tokens, with the writer of each token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from itertools import accumulate
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tokenizers

from aifx.core.errors import DataError
from aifx.data.chat.rows import BEGIN, END, Conversation, Message
from aifx.data.tokenizer import Tokenizer
from aifx.data.tokenizer_checks import library_errors

if TYPE_CHECKING:
    from aifx.data.chat.template import ChatTemplate  # with Jinja, which models that write no chats do not need

OTHERS, EARLIER, COMPLETION = 0, 1, 2
"""Writers of tokens: the template, a system or a user; the assistant in the prompt; the assistant in the completion."""

FIRST_NAME, FIRST_STAND_IN = 0x100000, 0x10F000
COMPARED = ("role", "type")
"""Fields that templates compare with names."""

_RESERVED = re.compile("[\U00100000-\U0010fffd]")

_INSERTED = "\U0010fff2"  # marks the beginning of the next message's text
_HINT = "put {% generation %} and {% endgeneration %} around what the assistant writes, or set data.chat_template"


class SpecialTokens:
    """The special tokens of a tokenizer, which only a template can write. A user's text that spells one stays text.

    A template may strip, compare or split text in any way, so private-use characters (plane 16 of Unicode) mark the
    difference:

    1. `shield`: if a user's text spells a special token, a stand-in replaces one of its characters.
    2. The template is rendered.
    3. `own`: a special token that the rendered text still spells is the template's. One character replaces it.
       Stand-ins become the characters that they replaced.
    4. `encode`: a copy of the tokenizer, whose special tokens have these characters as names, encodes the whole text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        description = json.loads(tokenizer.data)
        added = description.get("added_tokens", ())
        special = {token["content"]: token["id"] for token in added if token.get("special") and token["content"]}
        assert len(special) < FIRST_STAND_IN - FIRST_NAME
        self._names = {content: chr(FIRST_NAME + nth) for nth, content in enumerate(special)}
        self._contents = str.maketrans({name: content for content, name in self._names.items()})
        self._spelt = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        characters = sorted(set("".join(special)))
        self._stand_ins = {character: chr(FIRST_STAND_IN + nth) for nth, character in enumerate(characters)}
        self._restore = str.maketrans({stand_in: character for character, stand_in in self._stand_ins.items()})
        self._longest = max(map(len, special), default=0)
        self._heads = {content[:end] for content in special for end in range(1, len(content))}
        self._tails = {content[begin:] for content in special for begin in range(1, len(content))}
        self._special = tuple(special)
        self._name = tokenizer.name
        self._encoder = self._renamed(description, special)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which shields and owns texts, and encodes none."""
        return {name: value for name, value in vars(self).items() if name != "_encoder"}

    def shield(self, value: Any, place: str) -> Any:
        """A copy of a user's text, or of a mapping or list of texts, that cannot become a special token.

        Raises DataError for text with private-use characters of plane 16.
        """
        if isinstance(value, str):
            return self._with_edges(self._shielded(value, place))
        if isinstance(value, Mapping):
            return {
                self._shielded(key, place): self._shielded(part, place)
                if key in COMPARED and isinstance(part, str)
                else self.shield(part, place)
                for key, part in value.items()
            }
        return [self.shield(part, place) for part in value] if isinstance(value, (list, tuple)) else value

    def own(self, rendered: str) -> str:
        """The rendered text with one character for each special token, and without stand-ins."""
        return self._spelt.sub(lambda found: self._names[found[0]], rendered).translate(self._restore)

    def spell(self, text: str) -> str:
        """A text of `own` with special tokens spelled out."""
        return text.translate(self._contents)

    def encode(self, text: str) -> tokenizers.Encoding:
        """The ids of a text of `own`, with their offsets in it."""
        with library_errors(self._name):
            return self._encoder.encode(text, add_special_tokens=False)

    def encode_ids(self, text: str) -> list[int]:
        """The ids of a text of `own`, without the interpreter's lock."""
        with library_errors(self._name):
            (encoding,) = self._encoder.encode_batch_fast([text], add_special_tokens=False)
        return list(encoding.ids)

    def _shielded(self, text: str, place: str) -> str:
        if (found := _RESERVED.search(text)) is not None:
            why = f"U+{ord(found[0]):X} is for private use, and aifx marks special tokens with such characters"
            raise DataError(f"{place}: a text with the character U+{ord(found[0]):X}", why, "leave the character out")
        while self._spelt.search(text):
            text = self._spelt.sub(lambda found: self._stand_ins[found[0][0]] + found[0][1:], text)
        return text

    def _with_edges(self, text: str) -> str:
        """The text with stand-ins at its edges, so that it neither completes nor begins a special token.

        A template may remove the space around the text and put its own text next to it.
        """
        inner, begin = text.strip(), len(text) - len(text.lstrip())
        places = {begin} if inner and any(inner in content for content in self._special) else set()
        for size in range(1, min(self._longest, len(inner) + 1)):
            if inner[-size:] in self._heads:
                places.add(begin + len(inner) - size)
            if inner[:size] in self._tails:
                places.add(begin + size - 1)
        for at in places:
            text = text[:at] + self._stand_ins.get(text[at], text[at]) + text[at + 1 :]
        return text

    def _renamed(self, description: dict[str, Any], special: Mapping[str, int]) -> tokenizers.Tokenizer:
        """The tokenizer with other names for its special tokens and the same numbers."""
        names, model = self._names, description["model"]
        for token in description.get("added_tokens", ()):
            if token["content"] in special:
                token |= {"content": names[token["content"]], "normalized": False}
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
        elif isinstance(vocabulary, list):  # Unigram: pieces with their scores
            model["vocab"] = [[names.get(piece, piece), *rest] for piece, *rest in vocabulary]
        if isinstance(unknown := model.get("unk_token"), str):
            model["unk_token"] = names.get(unknown, unknown)
        if "dropout" in model:
            model["dropout"] = None
        description |= {"post_processor": None, "padding": None, "truncation": None}
        with library_errors(self._name):
            encoder = tokenizers.Tokenizer.from_str(json.dumps(description))
        wrong = [content for content, index in special.items() if encoder.token_to_id(names[content]) != index]
        if wrong:
            why = f"its special token {wrong[0]!r} has another number once it is renamed"
            raise DataError(f"{self._name} cannot be used for chats", why, "report it as a bug of aifx")
        return encoder


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
        """The text that a model reads before it answers, for `SpecialTokens.encode`.

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

    def prompt(self, messages: Sequence[Message], place: str = "the prompt") -> list[int]:
        """The tokens of `prompt_text`. Raises DataError."""
        return self.special.encode_ids(self.prompt_text(messages, place))

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
            near = self.special.spell(prompt[max(at - 20, 0) : at + 20])
            why = f"the messages before it are rendered differently if nothing follows, near {near!r}"
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
                other = render([*messages[:index], without, *messages[index + 1 :]])
            except DataError:  # it asks for them
                continue
            if other == rendered:
                why = "the text is the same without them"
                raise DataError(f"{place}: the chat template leaves out messages[{index}].tool_calls", why, hint)


def _bare(text: str) -> str:
    return text.replace(BEGIN, "").replace(END, "")


def _shared_length(text: str, other: str) -> int:
    """The length of the longest prefix that two texts share."""
    return len(commonprefix((text, other)))  # noqa: RUF071 - by character


def _with_mark(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        first, *others = content
        return {**message, "content": [{**first, "text": _INSERTED + first["text"]}, *others]}
    return {**message, "content": _INSERTED + (content or "")}


def _marked_spans(marked: str, conversation: Conversation, name: str) -> list[tuple[int, int]]:
    """The spans between `BEGIN` and `END`, as offsets in the text without these marks."""
    parts = re.split(f"([{BEGIN}{END}])", marked)
    if any(mark != (BEGIN, END)[nth % 2] for nth, mark in enumerate(parts[1::2])):
        raise DataError(f"{conversation.place}: {{% generation %}} within another", f"template: {name}")
    places = list(accumulate(map(len, parts[:-1:2])))  # of the marks
    if not places or len(places) % 2:
        what = f"{conversation.place}: it is not exact which tokens the assistant wrote"
        why = f"{name} has {{% generation %}}, and marks nothing in this conversation"
        raise DataError(what, why, "let the template put it around what the assistant writes")
    return list(zip(places[::2], places[1::2], strict=True))
