"""Special tokens that only a template can write. A user's text that spells one stays text.

A template may strip, compare or split text in any way, so private-use characters (plane 16 of Unicode) mark the
difference:

1. `shield`: if a user's text spells a special token, a stand-in replaces one of its characters.
2. The template is rendered.
3. `own`: a special token that the rendered text still spells is the template's. One character replaces it. Stand-ins
   become the characters that they replaced.
4. `encode`: a copy of the tokenizer, whose special tokens have these characters as names, encodes the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from aifx.core.errors import DataError
from aifx.data.tokenizer import Tokenizer
from aifx.data.tokenizer_checks import library_errors

FIRST_NAME, FIRST_STAND_IN = 0x100000, 0x10F000
_COMPARED = ("role", "type")
"""Fields that templates compare with names."""

_RESERVED = re.compile("[\U00100000-\U0010fffd]")


class SpecialTokens:
    """The special tokens of a tokenizer, by the characters that carry them."""

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
                if key in _COMPARED and isinstance(part, str)
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
