"""`aifx data recipe` writes a recipe of which `aifx data make` makes the same rows, or names a step."""

from __future__ import annotations

import json
from pathlib import Path

import inprocess
import pytest
from prose import prose

import aifx
from aifx.core.errors import UsageError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    (tmp_path / "texts").mkdir()
    for text in range(30):
        (tmp_path / "texts" / f"{text}.txt").write_text(f"{prose(200, text)} Write to ann{text}@example.com.")
    (tmp_path / "texts" / "copy.txt").write_text((tmp_path / "texts" / "3.txt").read_text())
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": (tmp_path / "texts" / "5.txt").read_text()}) + "\n")
    (tmp_path / "letters.jsonl").write_text('{"body": "Dear Mrs Smith, the parcel came."}\nbad\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(name: str, root: str) -> list[tuple[object, ...]]:
    return sorted(aifx.data_query(name, "SELECT * FROM data", rows=1000, root=root).rows, key=repr)


def make_again(project: Path, name: str) -> str:
    """Make a data set by its recipe in another root, and compare its rows. Returns the recipe."""
    written = aifx.data_recipe(name, output="again.toml")
    assert (project / "again.toml").read_text() == written.recipe
    made = aifx.data_make(name, recipe="again.toml", root=str(project / "again"))
    assert made.exit_code == 0
    assert made.data_sets[-1].name == name
    if aifx.data_show_version(name).step != "mix":
        assert rows(name, "again") == rows(name, "datasets")
    return written.recipe


@pytest.mark.slow
@pytest.mark.representative("a written recipe")
def test_a_recipe_makes_the_same_rows(project: Path) -> None:
    aifx.data_add("corpus", "texts", license="CC0-1.0")
    aifx.data_clean("corpus", rules=["gopher"], languages=[], repair=False, max_dropped=1)
    aifx.data_dedupe("corpus", near=0.8, mark=True)
    aifx.data_pii("corpus", mask=True, kinds=["email"], region=["DE"])
    aifx.data_split("corpus", validation=0.2, test=0.2, seed=3)
    aifx.data_decontaminate("corpus", against=["test.jsonl", "corpus"])
    recipe = make_again(project, "corpus")
    assert recipe.count("\n    {") == 6
    assert 'clean = {rules = ["gopher"]' in recipe


@pytest.mark.slow
def test_each_data_set_of_a_mix_has_a_table(project: Path) -> None:
    first = aifx.data_add("corpus", "texts/1.txt", license="CC0-1.0").reference
    aifx.data_add("corpus", "texts", license="CC0-1.0")
    aifx.data_add("letters", "letters.jsonl", license="MIT", text_field="body", max_bad=1)
    aifx.data_mix("blend", "corpus:0.7", "letters:0.3", epochs=["letters:2"])
    recipe = make_again(project, "blend")
    assert [line for line in recipe.splitlines() if line.startswith("[")] == ["[corpus]", "[letters]", "[blend]"]
    for name in ("corpus", "letters"):
        assert rows(name, "again") == rows(name, "datasets")
    aifx.data_mix("two", "corpus:1", f"{first}:1")
    assert f'"{first}:1.0"' in aifx.data_recipe("two").recipe


@pytest.mark.slow
def test_the_rules_of_a_contract_are_in_the_recipe(project: Path) -> None:
    aifx.data_add("letters", "letters.jsonl", license="MIT", text_field="body", max_bad=1)
    rules = '[[rule]]\ncolumn = "text"\ncheck = "length"\nat_least = 5\n'
    (project / "rules.toml").write_text(rules + '[[rule]]\ncheck = "rows"\nat_least = 1\nlevel = "warn"\n')
    judged = aifx.data_expect("letters").reference
    (project / "rules.toml").unlink()
    make_again(project, "letters")
    assert aifx.data_show_version("letters", root="again").reference == judged


@pytest.mark.slow
@pytest.mark.representative("a written recipe")
def test_a_join_in_a_recipe_makes_the_same_rows(project: Path) -> None:
    (project / "orders.csv").write_text("k,at\na,2024-05-02 09:00:00\nb,2024-05-02 09:00:00\na,2024-05-09 09:00:00\n")
    (project / "prices.csv").write_text("k,known,price\na,2024-05-01 09:00:00,2\nb,2024-05-03 09:00:00,3\n")
    for name in ("orders", "prices"):
        aifx.data_add(name, f"{name}.csv", kind="table", license="MIT")
    aifx.data_split("prices", validation=0, test=0.0, seed=1)
    joins: tuple[dict[str, object], ...] = (
        {"key": ["k"], "asof": "at:known", "tolerance": "5d"},
        {"asof": "at:known", "columns": ["price"], "prefix": "any_", "strictly_before": True, "key": []},
    )
    for settings in joins:
        aifx.data_join("orders", "prices", **settings)
    recipe = make_again(project, "orders")
    assert [line for line in recipe.splitlines() if line.startswith("[")] == ["[prices]", "[orders]"]
    assert recipe.count("{join =") == 2
    prices = [row[-1] for row in rows("prices", "again")]
    assert prices == ["train", "train"]
    assert rows("prices", "again") == rows("prices", "datasets")

    aifx.data_join("prices", "prices", key=["k"], asof="known", prefix="own_")
    with pytest.raises(UsageError, match=r"no recipe says what made prices(.|\n)*its recipe reads prices@"):
        aifx.data_recipe("prices")


def test_what_a_recipe_cannot_say_is_named(project: Path) -> None:
    aifx.data_add("corpus", "texts", license="CC0-1.0")
    (project / "own.toml").write_text('rule = [{ id = "w", measure = "words", at_least = 1, source = "this test" }]')
    aifx.data_clean("corpus", rules=["own.toml"])
    with pytest.raises(UsageError, match=r"no recipe says what made corpus@\w+ \(step clean\)(.|\n)*does not name"):
        aifx.data_recipe("corpus")
    aifx.data_add("letters", "letters.jsonl", license="MIT", text_field="body", max_bad=1)
    aifx.data_add("letters", "test.jsonl", license="CC0-1.0", max_bad=1)
    with pytest.raises(UsageError, match=r"\(step add\)(.|\n)*CC0-1.0, MIT"):
        aifx.data_recipe("letters")
    aifx.data_add("letters", "letters.jsonl", license="CC0-1.0", text_field="body", max_bad=1)
    with pytest.raises(UsageError, match=r"test.jsonl was read with another text_field than body"):
        aifx.data_recipe("letters")
    aifx.data_add("notes", "texts", license="MIT")
    aifx.data_erase("notes", "contains(text, 'ann1@')")
    with pytest.raises(UsageError, match=r"\(step erase\)"):
        aifx.data_recipe("notes")


def test_long_lists_have_an_item_on_a_line(project: Path) -> None:
    aifx.data_add("corpus", "texts", license="CC0-1.0")
    recipe = aifx.data_recipe("corpus").recipe
    assert max(map(len, recipe.splitlines())) < 120
    assert '    {add = {sources = [\n        "texts/0.txt",\n' in recipe
    (project / "recipe.toml").write_text(recipe)
    (planned,) = aifx.data_make_plan("corpus").data_sets
    assert planned.steps[0].reference == aifx.data_show_version("corpus").reference


def test_the_command(project: Path) -> None:
    aifx.data_add("corpus", "texts/1.txt", license="CC0-1.0")
    printed = inprocess.run(["data", "recipe", "corpus"], project, {})
    assert (printed.returncode, printed.stdout) == (0, aifx.data_recipe("corpus").recipe)
    (project / "deep").mkdir()
    done = inprocess.run(["data", "recipe", "corpus", "--output", "deep/r.toml", "--json"], project, {})
    assert json.loads(done.stdout)["file"] == str(project / "deep" / "r.toml")
    assert f'sources = ["{project}/texts/1.txt"]' in (project / "deep" / "r.toml").read_text()
    again = inprocess.run(["data", "recipe", "corpus", "--output", "deep/r.toml"], project, {})
    assert (again.returncode, "deep/r.toml exists" in again.stderr) == (2, True)
    assert inprocess.run(["data", "recipe", "none"], project, {}).returncode == 2
