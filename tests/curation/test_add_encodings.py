"""Files of several encodings: what `aifx data add` says of them, and `--encoding auto`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import inprocess
import pytest
from adding import add, environ_of, quarantine_of, rows_of

from aifx.curation.add_plan import plan_add
from aifx.curation.adding import decided_encoding
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.encodings import SAMPLE_BYTES
from aifx.data.readers.sources import list_sources
from aifx.data.versions.catalog import open_catalog

GERMAN = "Ein schöner Tag für die Bäume. Die Vögel grüßen den frühen Morgen über den Wäldern."
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def write(folder: Path) -> dict[str, str]:
    """Files of several formats, and the encoding of each."""
    files = {
        "a.txt": (GERMAN, "cp1252"),
        "b.txt": (JAPANESE, "utf-16-le"),
        "c.jsonl": (f'{{"text": "{RUSSIAN}"}}\n' * 3, "cp1251"),
        "d.csv": (f'text,n\n"{JAPANESE}",1\n', "cp932"),
        "e.csv": (f'text,n\n"{RUSSIAN}",1\n', "utf-16-be"),
        "f.jsonl": (f'{{"text": "{GERMAN}"}}\n', "utf-8"),
        "g.txt": (GERMAN, "utf-16-be"),
    }
    for name, (text, encoding) in files.items():
        (folder / name).write_bytes(text.encode(encoding))
    (folder / "h.txt.gz").write_bytes(gzip.compress(RUSSIAN.encode("koi8-r")))
    return {name: encoding for name, (_, encoding) in files.items()} | {"h.txt.gz": "koi8-r"}


def test_each_file_decides_its_encoding(tmp_path: Path) -> None:
    encodings = write(tmp_path)
    version = add(tmp_path, "corpus", *encodings, encoding="auto").version
    assert quarantine_of(version) == []
    found = {row["_source"]: row["text"] for row in rows_of(version)}
    german, russian = ("a.txt", "f.jsonl", "g.txt"), ("c.jsonl", "e.csv", "h.txt.gz")
    expected = dict.fromkeys(german, GERMAN) | dict.fromkeys(russian, RUSSIAN)
    assert found == expected | {"b.txt": JAPANESE, "d.csv": JAPANESE}
    assert {source.name: decided_encoding(source) for source in version.manifest.sources} == encodings


def test_the_same_bytes_are_not_read_again(tmp_path: Path) -> None:
    names = list(write(tmp_path))
    first = add(tmp_path, "corpus", *names, encoding="auto").version
    assert add(tmp_path, "other", *names, encoding="auto").version.manifest.version == first.manifest.version
    catalog = open_catalog(str(tmp_path / "datasets"))
    listing = list_sources([str(tmp_path / name) for name in names], tmp_path)
    options = ReadOptions("text", encoding="auto")
    assert plan_add(catalog, "corpus", listing, options, "MIT").step is None
    (tmp_path / "a.txt").write_bytes(RUSSIAN.encode("cp1251"))
    again = add(tmp_path, "corpus", *names, encoding="auto").version
    decided = {source.name: decided_encoding(source) for source in again.manifest.sources}
    assert (decided["a.txt"], decided["h.txt.gz"]) == ("cp1251", "koi8-r")


def run(folder: Path, *args: str) -> tuple[int, dict[str, object]]:
    command = ["data", "add", "corpus", *args, "--license", "MIT", "--root", "datasets", "--json"]
    done = inprocess.run(command, folder, environ_of(folder))
    return done.returncode, json.loads(done.stdout)


def test_likely_encodings_of_bad_bytes_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    code, found = run(tmp_path, "a.txt", "c.jsonl", "d.csv", "f.jsonl")
    assert (code, found["encodings"]) == (1, {})
    assert {(row["source"], row["line"]) for row in found["bad_rows"]} >= {("a.txt", 1), ("c.jsonl", 3), ("d.csv", 2)}
    likely = found["likely_encodings"]
    assert {name: names[0] for name, names in likely.items()} == {
        "a.txt": "cp1252", "c.jsonl": "cp1251", "d.csv": "cp932",
    }  # fmt: skip
    assert len(likely["a.txt"]) == 3
    code, found = run(tmp_path, "a.txt", "f.jsonl", "--encoding", "auto")
    assert (code, found["encodings"]) == (0, {"a.txt": "cp1252", "f.jsonl": "utf-8"})
    command = ["data", "add", "other", "a.txt", "--license", "MIT", "--root", "datasets"]
    assert "--encoding cp1252" in inprocess.run(command, tmp_path, environ_of(tmp_path)).stdout
    command = [*command, "--encoding", "auto"]
    assert "a.txt: cp1252" in inprocess.run(command, tmp_path, environ_of(tmp_path)).stdout


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_utf16_without_a_mark_is_not_taken_for_utf8(tmp_path: Path, name: str, encoding: str) -> None:
    content = {"a.txt": "Plain words.\n", "a.jsonl": '{"text": "Plain words."}\n', "a.csv": "text\nPlain words.\n"}[
        name
    ]
    (tmp_path / name).write_bytes(content.encode(encoding))
    damaged = add(tmp_path, "corpus", name).version
    assert rows_of(damaged) == []
    (bad,) = quarantine_of(damaged)
    assert f"--encoding {encoding}" in bad["reason"]
    assert rows_of(add(tmp_path, "right", name, encoding=encoding).version)[0]["text"].strip() == "Plain words."


def test_what_comes_after_the_sample_is_not_decided_by_it(tmp_path: Path) -> None:
    line = '{"text": "A line of plain ASCII, many of which fill the beginning of a file."}\n'
    count = SAMPLE_BYTES // len(line) + 2
    (tmp_path / "a.jsonl").write_bytes((line * count + f'{{"text": "{GERMAN}"}}\n').encode("cp1252"))
    code, found = run(tmp_path, "a.jsonl", "--encoding", "auto", "--max-bad", "0")
    assert (code, found["encodings"]) == (1, {"a.jsonl": "utf-8"})
    assert [row["line"] for row in found["bad_rows"]] == [count + 1]
    assert found["likely_encodings"]["a.jsonl"][0] == "cp1252"
