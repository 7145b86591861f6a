"""Tokens that a model writes, by an engine with one row as `aifx generate` makes it, and their text."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from aifx.data.tokenizer import Tokenizer, train_tokenizer
from aifx.programs.decoding import DecodingPrograms
from aifx.serving.generate import one_row_engine
from aifx.serving.requests import GenerationRequest, SamplingSettings
from aifx.serving.rows import Row, Weights


@functools.cache
def byte_tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer([], 257), "tokenizer.json")


def write_tokens(
    programs: DecodingPrograms,
    params: Any,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    **sampling: Any,
) -> Iterator[int]:
    """The tokens of an answer, whose last may be one of `end_ids`."""
    engine = one_row_engine(programs, params, byte_tokenizer(), len(prompt_ids), max_tokens)
    deltas = engine.write(
        GenerationRequest(
            prompt_ids,
            max_tokens,
            SamplingSettings(**sampling),
            stop_token_ids=frozenset(end_ids),
            ignore_end=True,
            forgets=True,
        )
    )
    return (token for delta in deltas for token in delta.token_ids)


def stream_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Sequence[int]) -> Iterator[str]:
    """The pieces of text that an engine delivers for these tokens, up to the first that ends them."""
    row = Row(GenerationRequest(prompt_ids, len(ids)), lambda _: None, tokenizer, Weights({}, "", b""))
    for token in ids:
        if text := row.accept(token, None).text:
            yield text
        if row.finish is not None:
            return
