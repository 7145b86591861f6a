"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from aifx.data.tokenizer import Tokenizer

CONTEXT_TOKENS = 8
"""A token's text may depend on so many before it (a space that begins a word)."""

MAX_PENDING = 16
"""Tokens that may wait for the last byte of a character: more have bytes among them that no other completes."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text that follows a prompt, token by token: whole characters, so one that spans tokens waits for its last."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        marks = {*tokenizer.end_ids, *tokenizer.begin_ids}
        self._window = [i for i in prompt_ids[-CONTEXT_TOKENS:] if i not in marks]
        self._written = tokenizer.decode(self._window)

    def push(self, token: int) -> str:
        """The text that is whole with one more token."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        is_pending = len(text) <= len(self._written) or text.endswith(UNKNOWN)
        if is_pending and len(self._window) <= CONTEXT_TOKENS + MAX_PENDING:
            return ""
        end = max(len(text) - _open_characters(text), len(self._written))
        new = text[len(self._written) : end]
        self._window = self._window[-CONTEXT_TOKENS:]
        written = self._tokenizer.decode(self._window)
        self._written = written[: len(written) - min(len(text) - end, _open_characters(written))]
        return new

    def rest(self) -> str:
        """What has not become whole, with U+FFFD for its bytes."""
        return self._tokenizer.decode(self._window)[len(self._written) :]


def _open_characters(text: str) -> int:
    """How many characters at the end may be one that lacks its last byte: it has four at most."""
    end = text[-3:]
    return len(end) - len(end.rstrip(UNKNOWN))


class StopTexts:
    """Ends a text before the first of some texts; what may be the beginning of one waits."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """The text that no stop text can take back. After one is found, nothing."""
        if not self._stop or self.is_found:
            return "" if self.is_found else text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_found = True
            keep = min(found)
        else:
            keep = len(self._held) - max(map(self._overlap, self._stop))
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def rest(self) -> str:
        """What waited, if no stop text was found."""
        return "" if self.is_found else self._held

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def stream_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` piece by piece, up to the first token that ends it."""
    stream = TextStream(tokenizer, prompt_ids)
    for token in ids:
        if token in tokenizer.end_ids:
            break
        if piece := stream.push(token):
            yield piece
    if rest := stream.rest():
        yield rest
