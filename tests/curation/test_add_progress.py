"""Progress of `aifx data add` within files."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from adding import add, quarantine_of
from pyarrow import parquet, table

from aifx.core import progress
from aifx.core.calls import advance, call_each
from aifx.core.progress import Progress
from aifx.curation.row_history import explain_row
from aifx.data.readers import parquet as parquet_reader
from aifx.data.versions.catalog import open_catalog


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet"])
def test_progress_moves_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0)
    monkeypatch.setattr(parquet_reader, "MOST_ROWS", 500)
    texts = [random.Random(number).randbytes(100).hex() for number in range(4000)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table({"text": texts}), path)
    else:
        path.write_bytes(gzip.compress("".join(f'{{"text": "{text}"}}\n' for text in texts).encode()))
    seen: list[Progress] = []
    with progress.listen(lambda one: seen.append(one) if one is not None else None):
        add(tmp_path, "corpus", path.name)
    found = [one.done for one in seen if one.activity == "add corpus"]
    assert found == sorted(found)
    assert found[-1] == path.stat().st_size
    assert len({done for done in found if 0 < done < path.stat().st_size}) >= 4


def double(number: int) -> int:
    advance(number)
    advance(10 * number)  # more than there is
    return 2 * number


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_each_call_reports_its_size(workers: int) -> None:
    reports: list[int] = []
    found = dict(call_each(double, [1, 2, 3], workers, sizes=[4, 5, 6], report=reports.append))
    assert found == {0: 2, 1: 4, 2: 6}
    assert sum(reports) == 15
    if workers == 1:
        assert reports == [1, 3, 0, 2, 3, 0, 3, 3, 0]


def test_a_row_in_quarantine_is_found_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "fine"}\n{"text": "Größe"\n'.encode() + b'{"text": "caf\xe9"}\n')
    version = add(tmp_path, "corpus", "a.jsonl").version
    assert [row["line"] for row in quarantine_of(version)] == [2, 3]
    catalog = open_catalog(str(tmp_path / "datasets"))
    for text, line in (("größe"[:2], 2), ("Größe", 2), ("CAF", 3)):
        (bad,) = explain_row(catalog, None, text, ["corpus"]).quarantined
        assert (bad.source, bad.line) == ("a.jsonl", line)
