"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from aifx.data.tokenizer import Tokenizer


def stream_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` piece by piece, each piece whole characters: one that spans tokens waits for its last.

    A token's text may depend on those before (a space that begins a word), so the end of the prompt is decoded along.
    """
    window = [i for i in prompt_ids[-8:] if i not in tokenizer.end_ids and i not in tokenizer.begin_ids]
    written = tokenizer.decode(window)
    for token in ids:
        if token in tokenizer.end_ids:
            break
        window.append(token)
        text = tokenizer.decode(window)
        if len(text) > len(written) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(written) :]
            window = window[-8:]
            written = tokenizer.decode(window)
    rest = tokenizer.decode(window)[len(written) :]
    if rest:
        yield rest
