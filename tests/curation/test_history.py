"""diff, lineage and why: what happened to rows between versions."""

from __future__ import annotations

import json
from pathlib import Path

import inprocess
import pytest
from toy_steps import Rows, WithoutLetter

from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.curation.execution import execute
from aifx.curation.history import SourceDifference, compare_versions, lineage_of
from aifx.curation.row_history import explain_row
from aifx.curation.step import Limits, Outcome, ShardStep
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import dropped_rows

LIMITS = Limits(1 << 30, 1)
TEXTS = (("a cat", "a dog", "A CAT"), ("an ox", "hi there"))


class Lower(ShardStep):
    """Lowers the texts, then drops the duplicates of the first shard's first row."""

    name = "lower"
    settings = property(lambda self: {"case": "lower", "longest": None})  # type: ignore[assignment]

    def apply(self, rows, work):  # type: ignore[no-untyped-def]
        import pyarrow.compute as pc

        rows = rows.set_column(rows.column_names.index("text"), "text", pc.utf8_lower(rows["text"]))
        rows = rows.append_column("size", pc.utf8_length(rows["text"]))
        is_twin = pc.and_(pc.equal(rows["text"], "a cat"), pc.not_equal(rows["_row"], "s0.txt-0"))
        twins = rows["_row"].filter(is_twin)
        dropped = dropped_rows(twins, ["exact duplicate"] * len(twins), ["s0.txt-0"] * len(twins))
        return Outcome(rows.filter(pc.invert(is_twin)), dropped)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def chain(catalog: Catalog) -> list[Version]:
    first = execute(Rows((), TEXTS), "pets", catalog, LIMITS).version
    second = execute(WithoutLetter((first,), "d"), "pets", catalog, LIMITS).version
    return [first, second, execute(Lower((second,)), "pets", catalog, LIMITS).version]


def test_a_difference_by_source_and_rule(catalog: Catalog, chain: list[Version]) -> None:
    found = compare_versions(catalog, chain[0].reference, "pets")
    assert (found.added, found.removed, found.changed, found.same) == (0, 2, 0, 3)
    assert found.by_source == (SourceDifference("s0.txt", 0, 2, 0),)
    rules = {(one.reference, one.step, one.rule, one.rows) for one in found.removed_by}
    assert rules == {
        (chain[1].reference, "without-letter", "has d", 1),
        (chain[2].reference, "lower", "exact duplicate", 1),
    }
    assert found.columns_added == ("size",)
    back = compare_versions(catalog, "pets", chain[0].reference)
    assert (back.added, back.removed, back.columns_removed, back.removed_by) == (2, 0, ("size",), ())
    assert not compare_versions(catalog, "pets", "pets").is_different


def test_a_changed_row(catalog: Catalog) -> None:
    first = execute(Rows((), (("One", "two"),)), "words", catalog, LIMITS).version
    execute(Lower((first,)), "words", catalog, LIMITS)
    found = compare_versions(catalog, first.reference, "words")
    assert (found.changed, found.same) == (1, 1)
    history = explain_row(catalog, "s0.txt-0", None, ["words"]).histories[0]
    assert [step.outcome for step in history.steps] == ["added", "changed"]


def test_a_lineage_with_its_runs(catalog: Catalog, chain: list[Version], tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").touch()
    version = chain[1].manifest
    others = f"{version.reference}{'0' * 52}"  # another version, whose digest begins alike
    for run, reference in (("main", version.whole_reference), ("other", others)):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        (folder / "config.toml").touch()
        (folder / "provenance.json").write_text(json.dumps({"dataset": {"reference": reference}}))
    found = lineage_of(catalog, "pets", Project(tmp_path))
    assert [one.reference for one in found.versions] == [version.reference for version in reversed(chain)]
    assert [one.step for one in found.versions] == ["lower", "without-letter", "rows"]
    assert [one.runs for one in found.versions] == [(), ("main",), ()]
    assert found.versions[1].settings == {"letter": "d"}
    assert (found.versions[2].sources, found.versions[2].licenses) == (2, ("MIT",))
    printed = inprocess.run(["data", "lineage", "pets"], tmp_path, {}).stdout.splitlines()
    assert printed[0] == f"{chain[2].reference}  3 rows"
    assert f"└─{chain[1].reference}  4 rows" in printed
    assert any("trained on it: main" in line for line in printed)
    assert max(map(len, printed)) < 250


def test_why_a_row_is_dropped(catalog: Catalog, chain: list[Version]) -> None:
    found = explain_row(catalog, "s0.txt-2", None, ["pets"])
    (history,) = found.histories
    assert (history.is_in_version, history.source, history.number, history.license) == (False, "s0.txt", 3, "MIT")
    assert [(step.step, step.outcome, step.rule) for step in history.steps] == [
        ("rows", "added", None),
        ("without-letter", "kept", None),
        ("lower", "dropped", "exact duplicate"),
    ]
    twin = history.steps[-1].twin
    assert twin is not None
    assert (twin.row, twin.text, twin.reference) == ("s0.txt-0", "a cat", chain[2].reference)
    assert explain_row(catalog, "s0.txt:3", None, ["pets"]).histories == found.histories
    by_text = explain_row(catalog, None, "DOG", ["pets"])
    assert [step.rule for step in by_text.histories[0].steps] == [None, "has d"]
    kept = explain_row(catalog, "s1.txt-0", None, ["pets"]).histories[0]
    assert kept.is_in_version


def test_why_when_several_rows_are_meant(catalog: Catalog, chain: list[Version]) -> None:
    found = explain_row(catalog, "s0", None, ["pets"])
    assert [one.row for one in found.rows] == ["s0.txt-0", "s0.txt-1", "s0.txt-2"]
    assert found.histories == ()
    with pytest.raises(UsageError, match="no row 'x'"):
        explain_row(catalog, "x", None, ["pets"])
    with pytest.raises(UsageError, match="it's"):
        explain_row(catalog, None, "it's", ["pets"])


def test_the_commands(catalog: Catalog, chain: list[Version], tmp_path: Path) -> None:
    root = ["--root", catalog.store.url]
    assert "1 removed" in inprocess.run(["data", "diff", "pets", *root], tmp_path, {}).stdout
    found = inprocess.run(["data", "diff", chain[0].reference, *root], tmp_path, {})
    assert (found.returncode, "has no parent" in found.stderr) == (2, True)
    for args in (["diff", "pets"], ["lineage", "pets"], ["why", "s0.txt-2"], ["why", "--text", "cat"]):
        document = inprocess.run(["data", *args, "--json", *root], tmp_path, {})
        assert document.returncode == 0
        json.loads(document.stdout)
    printed = inprocess.run(["data", "why", "s0.txt-2", *root], tmp_path, {}).stdout
    assert "row 3 of s0.txt" in printed
    assert "MIT" in printed
    assert "s0.txt-0 of s0.txt" in printed
    assert inprocess.run(["data", "why", *root], tmp_path, {}).returncode == 2
