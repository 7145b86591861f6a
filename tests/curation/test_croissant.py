"""Croissant's own package loads the description of a version, and reads its rows without a network."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from toy_steps import Rows, WithoutLetter

from aifx.curation.compact import Compact
from aifx.curation.execution import execute
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.names import Kind
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Source, Version

mlcroissant = pytest.importorskip("mlcroissant")

LIMITS = Limits(1 << 30, 1)
LICENSES = ("MIT", "CC-BY-4.0 OR Apache-2.0")


@dataclass(frozen=True)
class Table(Step):
    """Collects the rows of a table in one shard."""

    rows: Any
    of: Kind

    name = "add"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def kind(self) -> Kind:
        return self.of

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [("rows", 1)]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        sources = [Source(f"s{n}", "0" * 64, 1, len(self.rows), license) for n, license in enumerate(LICENSES)]
        yield Outcome(self.rows, sources=sources)


def picture(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 3), color).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def no_network(*_: object) -> None:
        raise AssertionError("a network is asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    catalog = open_catalog(str(tmp_path))
    return lambda step: execute(step, "things", catalog, LIMITS).version


def records(version: Version) -> list[dict[str, Any]]:
    """Its rows as mlcroissant gives them. Errors in the description raise."""
    found = mlcroissant.Dataset(jsonld=str(version.path / "croissant.json"))
    assert not found.metadata.issues.errors
    recommended = ("citeAs", "datePublished")  # a version has no time and no article
    assert all(any(word in one for word in recommended) for one in found.metadata.issues.warnings)
    return [{key.removeprefix("rows/"): value for key, value in row.items()} for row in found.records("rows")]


def test_texts(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    version = make(Rows((), (("é cat", "a dog"), ("an ox",))))
    assert [row["text"].decode() for row in records(version)] == ["é cat", "a dog", "an ox"]
    assert "not standard" not in caplog.text
    document = json.loads((version.path / "croissant.json").read_text())
    assert document["license"] == "https://spdx.org/licenses/MIT.html"
    assert document["isBasedOn"] == ["s0.txt", "s1.txt"]
    files = {one["contentUrl"]: one["sha256"] for one in document["distribution"] if "contentUrl" in one}
    assert files == {shard.name: shard.sha256 for shard in version.manifest.shards}
    assert document["version"].endswith(version.manifest.version)


def test_a_table(make: Any) -> None:
    import datetime

    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    columns = {
        "_row": ["r-0", "r-1"],
        "count": pa.array([1, 2], pa.int32()),
        "share": [0.5, 1.5],
        "good": [True, False],
        "day": pa.array([when.date()] * 2),
        "time": pa.array([when] * 2, pa.timestamp("us")),
        "tags": [["a", "b"], ["c"]],
        "nested": [{"x": 1}, {"x": 2}],
    }
    version = make(Table((), pa.table(columns), "table"))
    first, second = records(version)
    assert (first["count"], first["share"], first["good"]) == (1, 0.5, True)
    assert (second["count"], second["good"]) == (2, False)
    assert str(first["time"]).startswith("2026-01-02 03:04:05")
    assert str(first["day"]).startswith("2026-01-02")
    assert [tag.decode() for tag in first["tags"]] == ["a", "b"]
    assert "nested" not in first, "Croissant 1.0 has no type for it"
    document = json.loads((version.path / "croissant.json").read_text())
    assert document["license"] == ["CC-BY-4.0 OR Apache-2.0", "https://spdx.org/licenses/MIT.html"]


def test_pictures(make: Any) -> None:
    columns = {"_row": ["r-0", "r-1"], "image": [picture("red"), picture("blue")], "label": ["warm", "cold"]}
    rows = records(make(Table((), pa.table(columns), "images")))
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 0, 255)]
    assert rows[1]["label"] == b"cold"


def test_files_of_other_versions(make: Any) -> None:
    """They are named by their paths; mlcroissant reads the rows of a version that holds all of them."""
    make(WithoutLetter((make(Rows((), (("é cat", "a dog"),))),), "d"))
    version = make(WithoutLetter((make(Rows((), (("é cat", "a dog"), ("an ox",)))),), "d"))
    document = json.loads((version.path / "croissant.json").read_text())
    files = {version.path / one["contentUrl"]: one["sha256"] for one in document["distribution"] if "sha256" in one}
    assert [path.parents[1] == version.path for path in files] == [False, True]
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == files
    assert not mlcroissant.Dataset(jsonld=str(version.path / "croissant.json")).metadata.issues.errors
    assert [row["text"].decode() for row in records(make(Compact((version,))))] == ["é cat", "an ox"]
