"""`aifx data add --split-at`: parts of a text file as rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from adding import add, quarantine_of, rows_of

from aifx.core.errors import UsageError
from aifx.curation.add_plan import check_options
from aifx.data.readers import columnar as reader
from aifx.data.readers.base import ReadOptions

CHAPTERS = [f"CHAPTER {n}. Of é\n\n" + f"Words of chapter {n}.\n" * n for n in range(1, 30)]
BOOK = "Title\n\n" + "".join(CHAPTERS)
HEADING = "^CHAPTER "


@pytest.mark.parametrize("block", [64, 200, 1000, 32 << 20])
def test_a_row_begins_at_each_heading(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks are in which the file is read."""
    monkeypatch.setattr(reader, "FILL_BYTES", block)
    (tmp_path / "book.txt").write_text(BOOK)
    version = add(tmp_path, "corpus", "book.txt", split_at=HEADING).version
    texts = [row["text"] for row in rows_of(version)]
    assert "".join(texts) == BOOK
    assert texts == ["Title\n\n", *CHAPTERS]


def test_blank_parts_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n" + "".join(CHAPTERS[:2]))
    (tmp_path / "blank.txt").write_text("\n\n")
    version = add(tmp_path, "corpus", "book.txt", "blank.txt", split_at=HEADING).version
    assert [row["text"] for row in rows_of(version)] == CHAPTERS[:2]
    assert [row["reason"] for row in quarantine_of(version)] == ["no text"]


def test_bytes_that_are_no_text_are_at_their_line(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(CHAPTERS[0].encode() + b"CHAPTER 2\nw\xff\n" + CHAPTERS[2].encode())
    version = add(tmp_path, "corpus", "book.txt", split_at=HEADING).version
    assert [row["text"] for row in rows_of(version)] == [CHAPTERS[0], CHAPTERS[2]]
    assert [row["line"] for row in quarantine_of(version)] == [5]


def test_another_pattern_reads_the_file_again(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    whole = add(tmp_path, "corpus", "book.txt").version
    cut = add(tmp_path, "corpus", "book.txt", split_at=HEADING).version
    assert (whole.manifest.rows, cut.manifest.rows) == (1, 30)
    assert not add(tmp_path, "corpus", "book.txt", split_at=HEADING).is_new


def test_what_is_no_regular_expression() -> None:
    with pytest.raises(UsageError, match=r"\(CHAPTER"):
        check_options(ReadOptions("text", split_at="(CHAPTER"))
