"""The language of texts, by py3langid."""

from __future__ import annotations

from functools import cache
from typing import Any

NO_LANGUAGE = "zxx"

SAMPLE = 1024
"""Characters that are looked at, from the middle of a text: the time of a page, not of a book."""


def identify(texts: list[str]) -> tuple[list[str], list[float]]:
    """The ISO 639 code of the language of each text, and its probability, to two decimals.

    The code is "zxx", no language, for a text without letters.
    """
    found = [_identify(_sample(text)) for text in texts]
    # The last digits of a probability depend on the processor.
    return [language for language, _ in found], [round(probability, 2) for _, probability in found]


def known_languages() -> list[str]:
    """The codes that `identify` may give."""
    return sorted(_identifier().labels)


def _identify(sample: str) -> tuple[str, float]:
    if not any(map(str.isalpha, sample)):
        return NO_LANGUAGE, 1.0
    found: tuple[str, float] = _identifier().classify(sample)
    return found


def _sample(text: str) -> str:
    begin = max(0, (len(text) - SAMPLE) // 2)
    return text[begin : begin + SAMPLE]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
