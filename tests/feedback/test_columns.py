"""Columns of texts and pictures, as `aifx monitor` compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aifx.curation.column_drift import compare_columns
from aifx.feedback.columns import columns_of

ENGLISH = [
    "The parcel arrived two days late and the box was open.",
    "Please send me a new invoice for the order of last week.",
    "I cannot log in to my account since the last update.",
    "The colour of the jacket is not the one in the picture.",
]
GERMAN = [
    "Das Paket kam zwei Tage zu spät und der Karton war offen.",
    "Bitte schicken Sie mir eine neue Rechnung für die Bestellung.",
    "Seit der letzten Aktualisierung kann ich mich nicht anmelden.",
    "Die Farbe der Jacke ist nicht die auf dem Bild im Laden.",
]


def texts(count: int, german: float, seed: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"text": draw.choice(GERMAN if draw.random() < german else ENGLISH)} for _ in range(count)]


def drifted(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> set[str]:
    return {one.column for one in compare_columns(*columns_of(old, new).sides) if one.drifted}


def test_texts_in_another_language_drift_though_all_their_words_were_there() -> None:
    old = texts(400, german=0.1, seed=0)
    assert drifted(old, texts(400, german=0.1, seed=1)) == set()
    found = columns_of(old, [*texts(399, german=0.5, seed=2), {"text": None}])
    assert set(found.sides[1]["text.language"]) == {"en", "de", None}
    assert "text.language" in drifted(old, texts(400, german=0.5, seed=2))
