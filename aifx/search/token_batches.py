"""Vectors of texts by a model. A call takes texts of about one length: little is padding, and few programs compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aifx.search.embedders import F32, normalized

BATCH_TOKENS = 1 << 13
"""Tokens of a call, with padding."""

LEAST_LENGTH = 16


def embed_texts(
    texts: Any,
    encode: Callable[[list[str]], Sequence[Sequence[int]]],
    most: int,
    dims: int,
    call: Callable[[NDArray[np.int32], NDArray[np.int32]], Any],
) -> F32:
    """Vectors `[texts, dims]` of an Arrow array of strings, of length 1; of length 0 for a text without content.

    Args:
        encode: gives the tokens of each text.
        most: tokens that the model reads; only the beginning of a longer text counts.
        call: see `pooled_in_batches`.
    """
    values = texts.to_pylist()
    written = [index for index, text in enumerate(values) if text and not text.isspace()]
    encoded = encode([values[index] for index in written])
    tokens = {index: row[:most] for index, row in zip(written, encoded, strict=True) if row}
    vectors = np.zeros((len(values), dims), np.float32)
    vectors[list(tokens)] = pooled_in_batches(list(tokens.values()), most, dims, call)
    return normalized(vectors)


def pooled_in_batches(
    tokens: Sequence[Sequence[int]], most: int, dims: int, call: Callable[[NDArray[np.int32], NDArray[np.int32]], Any]
) -> F32:
    """Vectors `[texts, dims]` of the tokens of texts.

    Args:
        most: tokens of the longest text that the model reads; none has more.
        call: (tokens `[rows, seq]`, counts `[rows]`) -> `[rows, dims]`, where a row's text is the first of its tokens.
    """
    vectors = np.zeros((len(tokens), dims), np.float32)
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    while order:
        length = min(max(_power(len(tokens[order[-1]])), LEAST_LENGTH), most)
        largest = max(BATCH_TOKENS // length, 1)
        chosen = order[-largest:]
        del order[-len(chosen) :]
        rows = min(_power(len(chosen)), largest)
        inputs, counts = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
        for row, index in enumerate(chosen):
            counts[row] = len(tokens[index])
            inputs[row, : counts[row]] = tokens[index]
        vectors[chosen] = np.asarray(call(inputs, counts), np.float32)[: len(chosen)]
    return vectors


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()
