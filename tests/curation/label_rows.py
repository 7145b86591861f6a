"""Versions of rows to label, and labels of them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from made_rows import LIMITS, Made
from PIL import Image

from aifx.curation.execution import execute
from aifx.curation.labels.store import Entry, label_file, open_log, read_entries, read_state
from aifx.data.names import ROW, SOURCE, Kind
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Version

TEXTS = ("Opossums are great", "The cable broke <b>twice</b>", "No opinion", "It never starts", "Ω fits & works")


def rows_version(catalog: Catalog, name: str, columns: dict[str, Any], kind: Kind = "text") -> Version:
    """A version whose rows are f-0, f-1, …"""
    count = len(next(iter(columns.values())))
    ids = {ROW: [f"f-{row}" for row in range(count)], SOURCE: [f"folder/{row}.png" for row in range(count)]}
    return execute(Made((), (pa.table({**ids, **columns}),), kind), name, catalog, LIMITS).version


def texts_version(catalog: Catalog, texts: Sequence[str] = TEXTS, name: str = "reviews") -> Version:
    return rows_version(catalog, name, {"text": list(texts)})


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def entry(row: int | str, label: str | None, labeller: str = "ann", id: str = "", **more: Any) -> Entry:
    action = more.pop("action", "label" if label else "skip")
    row = f"f-{row}" if isinstance(row, int) else row
    fields = {"time": "2026-11-28T06:30:00.000Z", "kind": "text", "version": "reviews@0123456789ab", **more}
    return Entry(
        id=id or f"{row}-{label}-{labeller}-{action}", row=row, action=action, label=label, labeller=labeller, **fields
    )


def add_labels(catalog: Catalog, *entries: Entry, name: str = "reviews", column: str = "label") -> None:
    with open_log(catalog, name, column) as log:
        log.append(entries)


def labels_of(catalog: Catalog, name: str = "reviews") -> dict[str, dict[str, str]]:
    """The labels that count, by labeller, by row."""
    return read_state(catalog, name, "label").labels()


def entries_of(catalog: Catalog, name: str = "reviews") -> list[Entry]:
    """All lines."""
    return read_entries(label_file(catalog, name, "label"))
