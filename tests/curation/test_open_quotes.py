"""CSV files with a quote that does not end: damage, with the line of the quote, and the rows before it."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path

import pytest
from adding import add, quarantine_of, rows_of
from label_rows import texts_version

from aifx.core.errors import DataError
from aifx.curation.labels.files import read_labels
from aifx.curation.labels.rows import view_of
from aifx.data.readers import csv as csv_reader
from aifx.data.readers.base import DamagedFile, ReadOptions
from aifx.data.readers.csv import NotCsv, csv_rows
from aifx.data.readers.rows import input_file, read_rows
from aifx.data.readers.sources import local_file
from aifx.data.versions.catalog import open_catalog

PARAGRAPH = "word " * 20


@pytest.mark.parametrize(
    ("text", "rows", "line"),
    [
        ('text,n\na,1\n"b,2\nc,3\n', ["a"], 3),
        ('n,text\n1,a\n2,"b\n3,c\n', ["a"], 3),  # the last row has as many values as the header
        ('n,text\n1,a\n2,"b', ["a"], 3),
        ('n,text\n1,a\n2,"', ["a"], 3),
        ('text\na\n"b\nc\n', ["a"], 3),
        ('x,text\n"a\nb",c\n"d\ne","f\n\ng,h\n', ["c"], 5),
        ('"te\nxt",text\n"a\nb",c\n"d"",e', ["c"], 5),
        ('text,n\n5" pipe,1\n"b,2\nc,3\n', ['5" pipe'], 3),  # the number of quotes is even
        ('text,n\na,1\nb\n"c,2\n', ["a"], 4),
        ('text,n\n,\n"c,2\n', [], 3),
        ('text,"n\na,1\n', [], 1),
        ('text,n\n"a,1\n', [], 2),
    ],
)
def test_the_line_and_the_rows_before(tmp_path: Path, text: str, rows: list[str], line: int) -> None:
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(text.encode()))
    version = add(tmp_path, "corpus", "a.csv", "b.tsv", "c.csv.gz", kind="table").version
    kept = [row["text"] for row in rows_of(version) if row["_source"] == "a.csv" and row["text"]]
    assert kept == rows
    assert len(rows_of(version)) == 3 * len(rows)
    damages = [(row["source"], row["line"]) for row in quarantine_of(version) if "quote" in row["reason"]]
    assert damages == [("a.csv", line), ("b.tsv", line), ("c.csv.gz", line)]
    assert version.manifest.facts["damaged_files"] == 3
    bad = {row["line"] for row in quarantine_of(version) if "instead of" in row["reason"]}
    assert bad == ({3} if "\nb\n" in text and line == 4 else set())


def test_quotes_that_end_are_no_damage(tmp_path: Path) -> None:
    rows = ['5" pipe,1', '"a ""quoted"" word",2', '"two\nlines",3', '"",4', 'a"b"",5', '"x"y,6', '"end",7']
    for count in range(1, len(rows) + 1):
        (tmp_path / f"{count}.csv").write_text("\n".join(["text,n", *rows[:count]]))
        (tmp_path / f"{count}-ended.csv").write_text("\n".join(["text,n", *rows[:count], "", ""]))
    version = add(tmp_path, "corpus", "*.csv", kind="table").version
    assert "damaged_files" not in version.manifest.facts
    for source in version.manifest.sources:
        assert source.rows == int(source.name.partition(".")[0].removesuffix("-ended")), source.name


def test_any_quote_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that Python's module finds, whatever blocks they are in."""
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 400)
    dice, found = random.Random(5), [0, 0]
    values = ["a", "1", "", "two\nlines", "x, y", 'a "b" c', '"', "\n", "é" * 30]
    for _ in range(60):
        written = io.StringIO(newline="")
        rows = [[str(number), dice.choice(values), dice.choice(values)] for number in range(dice.randrange(1, 40))]
        csv.writer(written, lineterminator="\n").writerows([["number", "b", "c"], *rows])
        text = written.getvalue()
        if quotes := [at for at, character in enumerate(text) if character == '"']:
            lost = dice.choice(quotes)
            text = text[:lost] + text[lost + 1 :]
        (tmp_path / "a.csv").write_text(text, newline="")
        expected, line = [], None
        try:
            for _, cells, _ in csv_rows(io.StringIO(text, newline="")):
                expected += [cells] if len(cells) == 3 and cells[0] != "number" else []
        except NotCsv as e:
            line = e.line
        options = ReadOptions("table")
        file = local_file(tmp_path / "a.csv")
        schema = csv_reader.find_schema(file, options, is_whole=True)
        read, damage = [], None
        try:
            for batch in csv_reader.read(file, schema, options):
                read += batch.rows.to_pylist()
        except DamagedFile as e:
            damage = e.line
        assert damage == line, text
        assert [["" if value is None else str(value) for value in row.values()] for row in read] == expected, text
        found[line is not None] += 1
    assert min(found) > 5


def test_a_quote_that_goes_on_for_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 1 << 12)
    before = [f"{number},{PARAGRAPH}" for number in range(100)]
    after = [f"{number},{PARAGRAPH}" for number in range(100, 200)]
    text = "\n".join(["n,text", *before, '"two\nlines","open', *after])
    (tmp_path / "a.csv").write_text(text)
    version = add(tmp_path, "corpus", "a.csv").version
    assert [row["text"] for row in rows_of(version)] == [PARAGRAPH] * 100
    (damage,) = quarantine_of(version)
    assert (damage["line"], "quote" in damage["reason"]) == (103, True)
    for long in ("x" * 9000, f'"{"x" * 9000}"', f'"{"line" * 40}\n{"x" * 9000}"', f'5" {"x" * 9000}'):
        (tmp_path / "b.csv").write_text("\n".join(["n,text", *before, f"1,{long}", *after]))
        version = add(tmp_path, "other", "b.csv").version
        assert (version.manifest.rows, quarantine_of(version)) == (201, [])
        assert {len(row["text"]) for row in rows_of(version)} == {len(PARAGRAPH), len(long.strip('"'))}


def test_the_first_row_may_be_larger_than_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "SAMPLE_BYTES", 1 << 10)
    (tmp_path / "a.csv").write_text(f"text,n\n{PARAGRAPH * 50},1\nb,2\n")
    rows = rows_of(add(tmp_path, "corpus", "a.csv").version)
    assert [row["n"] for row in rows] == [1, 2]


def test_empty_lines_before_the_header_are_no_rows(tmp_path: Path) -> None:
    """The first of them was taken for a header without columns, and the file for one without rows."""
    (tmp_path / "a.csv").write_text('\n\r\n\ntext,n\na,1\nb\nc,2\n"d')
    version = add(tmp_path, "corpus", "a.csv").version
    assert [row["text"] for row in rows_of(version)] == ["a", "c"]
    assert sorted(row["line"] for row in quarantine_of(version)) == [6, 8]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_training_reads_no_more_of_a_quote_than_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(csv_reader, "QUOTE_CHARACTERS", 2000)
    path = tmp_path / f"a{suffix}"

    def write(text: str) -> None:
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())

    lines = "line\n" * 300
    write(f'n,text\n1,"{lines}"\n2,{"x" * 9000}\n3,"{"x" * 9000}"\n')
    assert [len(row.values["text"]) for row in read_rows(input_file(str(path)))] == [1500, 9000, 9000]
    write(f'n,text\n1,a\n"x\ny","open\n{lines * 10}')
    file = input_file(str(path))
    rows = read_rows(file)
    assert next(rows).values == {"n": "1", "text": "a"}
    with pytest.raises(DataError, match=rf"{path.name}:4\b") as refused:
        next(rows)
    assert "2,000" in refused.value.why


def test_labels_are_damaged_too(tmp_path: Path) -> None:
    version = texts_version(open_catalog(str(tmp_path / "datasets")))
    path = tmp_path / "labels.csv"
    for text, line in (('row,label\nf-0,x\nf-1,"y\nf-2,z\n', 3), ('row,label\n"f\n0",x\n"f\n1","y\n', 5)):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"labels\.csv:{line}\b"):
            list(read_labels(path, "csv", view_of(version, "label"), "label"))
    path.write_text('row,label\n\nf-0,"x"\n"f-1",y\nf-2\n', encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"labels\.csv:5\b") as refused:
        list(read_labels(path, "csv", view_of(version, "label"), "label"))
    assert "1 cells" in refused.value.why
    path.write_text('row,label\n\nf-0,"x"\n"f-1",y\nf-2,\n', encoding="utf-8-sig")
    found = list(read_labels(path, "csv", view_of(version, "label"), "label"))
    assert [(one.row, one.label, one.place.rpartition(":")[2]) for one in found] == [
        ("f-0", "x", "3"), ("f-1", "y", "4"), ("f-2", None, "5"),
    ]  # fmt: skip
