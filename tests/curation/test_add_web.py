"""`aifx data add` of web pages, WARC archives and pictures."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path

import pytest
from adding import add, quarantine_of, rows_of
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from aifx.core.errors import EnvironmentFault

PARAGRAPH = "The quick brown fox jumps over the lazy dog, and then it sleeps for a while in the warm sun. "


def page(text: str) -> bytes:
    body = f"<nav><a href='/'>Home</a></nav><article><h1>Title</h1><p>{text}</p></article><script>evil()</script>"
    return f"<html><head><title>T</title></head><body>{body}</body></html>".encode()


def write_warc(path: Path, pages: list[tuple[str, str, bytes]], *, compressed: bool) -> None:
    """Write an archive with a response per (URL, media type, body)."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record("x.warc", {"software": "test"}))
        for url, kind, body in pages:
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                url,
                "response",
                payload=io.BytesIO(body),
                http_headers=headers,
                warc_headers_dict={"WARC-Date": "2026-01-02T03:04:05Z"},
            )
            writer.write_record(record)


def test_pages_become_their_main_text(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(page(PARAGRAPH * 3))
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(page("Ünïcode. " + PARAGRAPH * 3)))
    (tmp_path / "c.html").write_bytes(b"<html></html>")
    version = add(tmp_path, "web", "a.html", "b.htm.gz", "c.html").version
    texts = [row["text"] for row in rows_of(version)]
    assert [text.count("lazy dog") for text in texts] == [3, 3]
    assert "Ünïcode" in texts[1]
    assert not any("evil" in text or "Home" in text for text in texts)
    assert [(row["source"], row["line"], row["reason"]) for row in quarantine_of(version)] == [("c.html", 1, "no text")]


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_an_archive_gives_its_pages(tmp_path: Path, suffix: str) -> None:
    pages = [(f"http://example.org/{n}", "text/html; charset=utf-8", page(f"{n}. {PARAGRAPH * 3}")) for n in range(3)]
    others = [("http://example.org/x.png", "image/png", b"png"), ("http://example.org/none", "text/html", b"<html/>")]
    path = tmp_path / f"crawl{suffix}"
    write_warc(path, [*pages, *others], compressed=suffix.endswith(".gz"))
    version = add(tmp_path, "web", path.name).version
    rows = rows_of(version)
    assert [row["url"] for row in rows] == [url for url, _, _ in pages]
    assert {row["date"] for row in rows} == {"2026-01-02T03:04:05Z"}
    assert [row["_row"].rpartition("-")[2] for row in rows] == ["1", "2", "3"]
    assert [(row["line"], row["reason"]) for row in quarantine_of(version)] == [(6, "no text")]

    path.write_bytes(path.read_bytes()[:-900])
    version = add(tmp_path, "torn", path.name).version
    assert version.manifest.facts["damaged_files"] == 1
    assert len(rows_of(version)) < 3
    assert [row["source"] for row in quarantine_of(version)][-1] == path.name


def write_three(path: Path) -> None:
    """Write an archive with three pages behind a record of another type."""
    write_warc(
        path, [(f"http://example.org/{n}", "text/html", page(PARAGRAPH * 3)) for n in range(3)], compressed=False
    )


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_a_record_without_its_target_is_a_bad_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"crawl{suffix}"
    write_three(path)
    data = path.read_bytes().replace(b"WARC-Target-URI: http://example.org/1\r\n", b"")
    data = data.replace(b"WARC-Type: warcinfo", b"WARC-Type: request")
    records = [b"WARC/1.0" + record for record in data.split(b"WARC/1.0")[1:]]
    path.write_bytes(b"".join(map(gzip.compress, records)) if suffix.endswith(".gz") else data)
    version = add(tmp_path, "web", path.name).version
    assert [row["url"] for row in rows_of(version)] == ["http://example.org/0", "http://example.org/2"]
    ((line, reason),) = [(row["line"], row["reason"]) for row in quarantine_of(version)]
    assert (line, "WARC-Target-URI" in reason) == (3, True)
    assert "damaged_files" not in version.manifest.facts


def test_a_record_without_its_type_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "crawl.warc"
    write_three(path)
    parts = path.read_bytes().split(b"WARC/1.0")
    parts[3] = parts[3].replace(b"WARC-Type: response\r\n", b"")
    path.write_bytes(b"WARC/1.0".join(parts))
    version = add(tmp_path, "web", path.name).version
    assert [row["url"] for row in rows_of(version)] == ["http://example.org/0", "http://example.org/2"]
    assert [(row["line"], "WARC-Type" in row["reason"]) for row in quarantine_of(version)] == [(3, True)]


@pytest.mark.parametrize("length", ["", "Content-Length:", "Content-Length: many", "Content-Length: -1"])
@pytest.mark.parametrize("record", [1, 3])
def test_a_record_without_its_length_is_damage(tmp_path: Path, record: int, length: str) -> None:
    """The records after it cannot be told from its content."""
    path = tmp_path / "crawl.warc"
    write_three(path)
    parts = path.read_bytes().split(b"WARC/1.0")
    line = f"{length}\r\n".encode() if length else b""
    parts[record] = re.sub(rb"Content-Length: \d+\r\n", line, parts[record], count=1)
    path.write_bytes(b"WARC/1.0".join(parts))
    version = add(tmp_path, "web", path.name).version
    assert [row["url"] for row in rows_of(version)] == ["http://example.org/0"][: record - 2]
    ((line, reason),) = [(row["line"], row["reason"]) for row in quarantine_of(version)]
    assert (line, "Content-Length" in reason) == (record, True)
    assert version.manifest.facts["damaged_files"] == 1


@pytest.mark.parametrize("length", [b"99999", b"9" * 30])
@pytest.mark.parametrize("record", [1, 3])
def test_a_record_that_is_longer_than_the_archive_is_damage(tmp_path: Path, record: int, length: bytes) -> None:
    path = tmp_path / "crawl.warc"
    write_three(path)
    parts = path.read_bytes().split(b"WARC/1.0")
    parts[record] = re.sub(rb"Content-Length: \d+", b"Content-Length: " + length, parts[record], count=1)
    path.write_bytes(b"WARC/1.0".join(parts))
    version = add(tmp_path, "web", path.name).version
    assert [row["line"] for row in quarantine_of(version)] == [record]
    assert version.manifest.facts["damaged_files"] == 1


def test_web_pages_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_bytes(page(PARAGRAPH))
    monkeypatch.setitem(__import__("sys").modules, "trafilatura", None)
    with pytest.raises(EnvironmentFault, match="need trafilatura") as raised:
        add(tmp_path, "web", "a.html")
    assert raised.value.hint.startswith("pip install 'trafilatura")


def save(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def test_folders_of_pictures(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.jpg", "dog/1.png", "0.png"):
        save(tmp_path / "pets" / name)
    (tmp_path / "pets" / "dog" / "torn.png").write_bytes((tmp_path / "pets/dog/1.png").read_bytes()[:50])
    (tmp_path / "pets" / "dog" / "other.png").write_bytes(b"not a picture")
    version = add(tmp_path, "pets", "pets", kind="images").version
    rows = rows_of(version)
    assert [(row["_source"], row["label"]) for row in rows] == [
        ("pets/0.png", None),
        ("pets/cat/1.png", "cat"),
        ("pets/cat/2.jpg", "cat"),
        ("pets/dog/1.png", "dog"),
    ]
    assert all(row["image"] == (tmp_path / row["_source"]).read_bytes() for row in rows)
    assert [row["source"] for row in quarantine_of(version)] == ["pets/dog/other.png", "pets/dog/torn.png"]
    by_glob = add(tmp_path, "again", "pets/*/*.png", kind="images").version
    assert [row["label"] for row in rows_of(by_glob)] == ["cat", "dog"]


def test_pictures_beyond_the_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "small.png")
    save(tmp_path / "large.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    version = add(tmp_path, "pets", "small.png", "large.png", kind="images").version
    assert [row["_source"] for row in rows_of(version)] == ["small.png"]
    assert [(row["source"], "exceeds limit" in row["reason"]) for row in quarantine_of(version)] == [
        ("large.png", True)
    ]
