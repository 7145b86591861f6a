"""Duplicates planted in the documents of Debian's packages: their texts are long, repetitive and of many kinds."""

from __future__ import annotations

import gzip
import random
from itertools import islice
from pathlib import Path

import pytest
from made_rows import LIMITS, edited, jaccard, numbered, rows_of, texts_version

from aifx.curation.duplicates import Dedupe
from aifx.curation.execution import execute
from aifx.data.names import CLUSTER, ROW
from aifx.data.versions.catalog import open_catalog

DOCUMENTS = Path("/usr/share/doc")
MOST_BYTES = 6 << 20


def documents() -> list[str]:
    """Parts of about 300 words of the compressed texts of packages."""
    found: list[str] = []
    size = 0
    for path in sorted(DOCUMENTS.rglob("*.gz")):
        text = gzip.decompress(path.read_bytes()).decode(errors="replace")
        words = iter(text.split())
        while (part := list(islice(words, 300))) and size < MOST_BYTES:
            found.append(" ".join(part))
            size += len(found[-1])
    return found


@pytest.mark.slow
def test_planted_copies_of_documents_are_found(tmp_path: Path) -> None:
    texts = [text for text in documents() if text.count(" ") > 60]
    if len(texts) < 500:
        pytest.skip(f"{DOCUMENTS} has {len(texts)} texts; 500 are needed: install packages whose names end with -doc")
    chosen = random.Random(1).sample(range(len(texts)), 200)
    copies = [edited(texts[place], 1 + place % 6, place) for place in chosen]
    everything = numbered([*texts, *copies, *(texts[place] for place in chosen[:50])])
    catalog = open_catalog(str(tmp_path))
    version = texts_version(catalog, everything, 700)
    marked = execute(Dedupe((version,), 0.8, mark=True), "texts", catalog, LIMITS).version
    clusters = {row[ROW]: row[CLUSTER] for row in rows_of(marked.shards)}
    ids = [row for row, _ in everything]
    pairs = [(ids[place], ids[len(texts) + number]) for number, place in enumerate(chosen)]
    near = [jaccard(texts[place], copy) >= 0.8 for place, copy in zip(chosen, copies, strict=True)]
    assert sum(near) > 150
    found = [clusters[one] == clusters[two] for (one, two), is_near in zip(pairs, near, strict=True) if is_near]
    assert sum(found) / len(found) >= 0.99
    assert all(clusters[ids[place]] == clusters[row] for place, row in zip(chosen, ids[-50:], strict=False))
    kept = execute(Dedupe((version,), 0.8), "texts", catalog, LIMITS).version
    rest = texts_version(catalog, [(row[ROW], row["text"]) for row in rows_of(kept.shards)], 700, "rest")
    assert execute(Dedupe((rest,), 0.8), "rest", catalog, LIMITS).version.manifest.dropped_by == {}
