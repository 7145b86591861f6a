"""aifx data report: a page that holds what is known of a version, and shows no personal data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import inprocess
import pyarrow as pa
import pytest
from browser import CHROMIUM, Browser
from test_croissant import Table, picture
from toy_steps import WithoutLetter

from aifx.curation.dataset_report import DatasetReport, dataset_page, read_report
from aifx.curation.execution import execute
from aifx.curation.step import Limits, Outcome, ShardStep
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.shards import dropped_rows

LIMITS = Limits(1 << 30, 1)
NASTY = "</p><script>alert(1)</script><img src=http://evil.example/x.png>"
ROWS = 600


def table(text: str = "word ") -> pa.Table:
    draw = random.Random(0)
    return pa.table(
        {
            "_row": [f"r-{row}" for row in range(ROWS)],
            "_source": [f"s{row % 2}" for row in range(ROWS)],
            "text": [text * draw.randrange(1, 40) + ("z" if row % 3 == 0 else "") for row in range(ROWS)],
            "language": [draw.choice(["en", "de", "de"]) for _ in range(ROWS)],
            "score": [draw.gauss(0, 1) for _ in range(ROWS)],
            'odd "{name}"': [NASTY] * ROWS,
        }
    )


@dataclass(frozen=True)
class Pii(ShardStep):
    """Finds something in each row that has a q, and drops the row."""

    name = "pii"
    settings = property(lambda self: {"action": "drop"})  # type: ignore[assignment]

    def apply(self, rows, work):  # type: ignore[no-untyped-def]
        dropped = rows["_row"].slice(0, 2)
        return Outcome(rows.slice(2), dropped_rows(dropped, ["email"] * 2), {"rows_found": 2, "rows_found.email": 2})


@dataclass(frozen=True)
class Dedupe(ShardStep):
    """Drops the second row as a copy of the first, and leaves one cluster of two rows."""

    name = "dedupe"
    settings = property(lambda self: {})  # type: ignore[assignment]

    def apply(self, rows, work):  # type: ignore[no-untyped-def]
        ids = rows["_row"].to_pylist()
        kept = pa.concat_tables([rows.slice(0, 1), rows.slice(2)])
        clusters = [ids[0], ids[2], ids[2], *ids[4:]]
        dropped = dropped_rows(rows["_row"].slice(1, 1), ["exact"], [ids[0]])
        return Outcome(kept.append_column("_cluster", pa.array(clusters)), dropped)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def report(catalog: Catalog) -> DatasetReport:
    first = execute(Table((), table(), "text"), "corpus", catalog, LIMITS).version
    second = execute(WithoutLetter((first,), "z"), "corpus", catalog, LIMITS).version
    execute(Dedupe((second,)), "corpus", catalog, LIMITS)
    return read_report(catalog, "corpus", None, first.reference)


def test_what_a_report_holds(report: DatasetReport) -> None:
    assert [(step.step, step.rows) for step in report.steps] == [
        ("add", 600), ("without-letter", 400), ("dedupe", 399),
    ]  # fmt: skip
    (example, *_) = report.steps[1].examples["has z"]
    assert (example.row, example.source, example.text[-1]) == ("r-0", "s0", "z")
    assert len(report.steps[1].examples["has z"]) == 3
    copy = report.steps[2].examples["exact"][0]
    assert (copy.row, copy.twin, copy.twin_text is not None) == ("r-2", "r-1", True)
    licenses = {one.license: (one.sources, one.rows) for one in report.licenses}
    assert licenses == {"MIT": (1, 199), "CC-BY-4.0 OR Apache-2.0": (1, 200)}
    duplicates = report.duplicates
    assert (duplicates.dropped, duplicates.clusters, duplicates.clustered_rows) == (1, 1, 2)
    assert report.personal == {}
    drift = {one.column: one for one in report.drift}
    assert {"text", "score", "language", 'odd "{name}"'} == drift.keys()
    assert (drift["text"].of, drift["text"].rows) == ("lengths", (600, 399))
    assert not any(one.drifted for one in report.drift)


@pytest.mark.slow
def test_a_removal_of_personal_data_hides_texts(catalog: Catalog, report: DatasetReport) -> None:
    latest = catalog.open("corpus")
    execute(Pii((latest,)), "corpus", catalog, LIMITS)
    found = read_report(catalog, "corpus", None, None)
    assert (found.personal, found.examples_hidden_by) == ({"email": 2}, "pii")
    assert all(not step.examples for step in found.steps)
    page = dataset_page(found)
    assert ">email<" in page
    assert "word word" not in page
    assert read_report(catalog, "corpus", 1, None).steps[1].examples


def test_the_command(catalog: Catalog, report: DatasetReport, tmp_path: Path) -> None:
    root = ["--root", catalog.store.url]
    found = inprocess.run(["data", "report", "corpus", *root], tmp_path, {})
    assert found.stdout == f"{report.reference.replace('@', '-')}.html\n"
    assert "corpus@" in (tmp_path / found.stdout.strip()).read_text()
    found = inprocess.run(["data", "report", "corpus", "--html", "no/x.html", "--json", *root], tmp_path, {})
    assert found.returncode == 2
    assert "no/x.html" in json.loads(found.stdout)["error"]["what"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: pages are not looked at")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("text", "table")]


@pytest.mark.parametrize("kind", ["nasty", "images", *SLOW_KINDS])
def test_a_page_is_readable_and_asks_for_nothing(kind: str, catalog: Catalog, browser: Browser, tmp_path: Path) -> None:
    rows = table(f"{NASTY} ") if kind == "nasty" else table()
    if kind == "images":
        rows = pa.table({"_row": ["r-0"], "image": [picture("red")], "label": [NASTY]})
    elif kind == "table":
        rows = rows.rename_columns({"text": "x" * 90})
    first = execute(Table((), rows, kind if kind in ("table", "images") else "text"), "corpus", catalog, LIMITS).version
    if kind in ("text", "nasty"):
        second = execute(WithoutLetter((first,), "z"), "corpus", catalog, LIMITS).version
        execute(Dedupe((second,)), "corpus", catalog, LIMITS)
    page = dataset_page(read_report(catalog, "corpus", None, None))
    path = tmp_path / "page.html"
    path.write_text(page, "utf-8")
    assert "<script" not in page
    for width in (1280, 400):
        browser.open(path, width)
        browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert browser.requests == [path.as_uri()]
        assert browser.errors == []
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("document.querySelectorAll('svg.picture').length") == page.count('class="picture"')
        assert browser.ask(
            "[...document.querySelectorAll('main *')].every(one => one.getBoundingClientRect().left >= 0)"
        )
    assert page.count('class="picture"') >= {"text": 6, "nasty": 6, "table": 2, "images": 2}[kind]
