"""Text that looks like a language, for tests."""

from __future__ import annotations

import random


def prose(num_words: int, seed: int = 0) -> str:
    """Words with a skewed frequency, some of them not ASCII, in sentences and paragraphs."""
    source = random.Random(seed)
    known = ["".join(source.choices("abcdefghilmnoprstuvéжβ", k=source.randint(1, 8))) for _ in range(200)]
    words = source.choices(known, weights=[1 / (1 + rank) for rank in range(200)], k=num_words)
    ends = source.choices([" ", " ", " ", " ", ", ", ". ", "\n", "\n\n", " 1851 ", "—"], k=num_words)
    return "".join(word + end for word, end in zip(words, ends, strict=True))
