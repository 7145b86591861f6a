"""profile.json: what a version holds, the same however its rows are divided."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_steps import Rows

from aifx.core.json_values import plain
from aifx.curation.execution import execute
from aifx.curation.profile import HASHES, _characters, merge_profiles, profile_rows
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.shards import repeats

LIMITS = Limits(1 << 30, 1)


def table(rows: int, seed: int = 0) -> pa.Table:
    draw = random.Random(seed)
    return pa.table(
        {
            "_row": [f"r-{row}" for row in range(rows)],
            "_source": [f"{row % 3}.txt" for row in range(rows)],
            "text": [("é " * draw.randrange(1, 9)) + str(draw.randrange(50)) for _ in range(rows)],
            "language": [draw.choice(["en", "de", None]) for _ in range(rows)],
            "score": [draw.random() if row % 5 else None for row in range(rows)],
            "id": list(range(rows)),
        }
    )


def test_the_profile_of_rows() -> None:
    rows = table(1000)
    part = profile_rows(rows, "table")
    assert part.rows == 1000
    language, score = part.columns["language"], part.columns["score"]
    languages = rows["language"].to_pylist()
    assert language.values == {"en": languages.count("en"), "de": languages.count("de")}
    assert language.nulls == languages.count(None)
    assert len(language.hashes or ()) == 2
    assert score.nulls == 200
    scores = [value for value in rows["score"].to_pylist() if value is not None]
    assert (score.min, score.max) == (min(scores), max(scores))
    texts = rows["text"].to_pylist()
    assert len(part.columns["text"].hashes or ()) == len(set(texts))
    assert part.columns["text"].min is None, "no text in a profile"
    characters, words = part.lengths["characters"], part.lengths["words"]
    assert (characters.rows, characters.total) == (1000, sum(map(len, texts)))
    assert (words.rows, words.total) == (1000, sum(len(text.split()) for text in texts))
    assert sum(count for edge, count in characters.bins.items() if edge < 8) == sum(len(text) < 8 for text in texts)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", "b", "a", "b"]), True),
        (pa.array(["a", "b", "c", None]), False),
        (pa.array([1, 1, 2]), False),
        (pa.array([[1], [1]]), False),
        (pa.array([bytes(16)] * 2, pa.uuid()), False),
    ],
)
def test_columns_that_repeat_their_values(values: pa.Array, expected: bool) -> None:
    assert repeats(pa.chunked_array([values])) is expected


@given(st.lists(st.lists(st.text() | st.text("aé€😀", max_size=40)), max_size=3), st.integers(0, 3))
def test_characters_are_those_of_python(chunks: list[list[str]], first: int) -> None:
    texts = pa.chunked_array([pa.array(chunk, pa.string())[first:] for chunk in chunks], pa.string())
    assert _characters(texts).tolist() == [len(text) for text in texts.to_pylist()]


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.curation.profile.WORDS_BYTES", 1 << 30)  # words of all texts
    rows = table(9000)
    whole = profile_rows(rows, "table")
    merged = merge_profiles(profile_rows(rows.slice(start, 700), "table") for start in range(0, 9000, 700))
    assert {**plain(merged), "columns": None} == {**plain(whole), "columns": None}
    for name in rows.column_names:
        ours, theirs = plain(merged.columns[name]), plain(whole.columns[name])
        ours.pop("bytes"), theirs.pop("bytes")  # offsets and bitmaps of slices
        assert ours == theirs, name
    assert len(whole.columns["id"].hashes or ()) == HASHES


def test_what_a_version_has(tmp_path: Path) -> None:
    catalog = open_catalog(str(tmp_path))
    texts = (tuple(f"text {n}" for n in range(3000)), tuple(f"text {n}" for n in range(1500, 4000)))
    made = execute(Rows((), texts), "corpus", catalog, LIMITS).version
    profile = json.loads((made.path / "profile.json").read_text())
    assert profile["rows"] == 5500
    assert profile["columns"]["_source"]["values"] == {"s0.txt": 3000, "s1.txt": 2500}
    assert profile["columns"]["text"]["is_estimate"]
    assert profile["columns"]["text"]["distinct"] == pytest.approx(4000, rel=0.08)
    assert profile["columns"]["_row"]["distinct"] == 5500
    assert profile["lengths"]["words"]["bins"] == {"2": 5500}


def test_numbers_have_histograms(tmp_path: Path) -> None:
    from aifx.curation.profile import complete_profile
    from aifx.data.versions.manifest import Manifest, StepRecord, Version
    from aifx.data.versions.shards import columns_of, write_shard

    parts, shards = [], []
    for number in range(3):
        rows = table(500, number)
        shards += write_shard(tmp_path, f"shards/{number}", rows)
        parts.append(profile_rows(rows, "table"))
    step = StepRecord("add", {})
    size = sum(shard.bytes for shard in shards)
    manifest = Manifest("t", "table", columns_of(table(1)), 1500, size, tuple(shards), (), {}, (), step, ())
    profile = complete_profile(merge_profiles(parts), Version(tmp_path, manifest))
    found = profile.columns["id"].histogram
    assert found is not None
    assert (found.rows, found.edges[0], found.edges[-1]) == (1500, 0.0, 499.0)
    assert sum(found.counts) == 1500
    assert max(found.counts) - min(found.counts) <= 6
    assert profile.columns["score"].histogram is not None
    assert profile.columns["language"].histogram is None


def test_a_profile_is_read_without_pyarrow(tmp_path: Path) -> None:
    root = str(tmp_path / "datasets")
    execute(Rows((), (("a cat",),)), "pets", open_catalog(root), LIMITS)
    code = f"import sys, aifx; aifx.data_profile('pets', root={root!r}); sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
