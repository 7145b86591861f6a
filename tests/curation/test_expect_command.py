"""`aifx data expect` as a command: output, exit codes, first contracts and the history."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from contract_tables import add_table, catalog_of, judge, row_ids
from documented import blocks
from inprocess import run

from aifx.core.errors import ConfigError, ExitCode
from aifx.curation.contract_history import contract_history
from aifx.curation.contract_inference import infer_contract
from aifx.curation.contracts import load_contract
from aifx.verbs.recipes import data_make, data_make_plan


def aifx(folder: Path, *args: str) -> CompletedProcess[str]:
    return run(["data", *args, "--root", "datasets"], folder, dict(os.environ))


def orders(folder: Path, prices: list[float]) -> None:
    lines = [f"{n},{price},DE,2026-02-{n % 28 + 1:02d}" for n, price in enumerate(prices)]
    (folder / "orders.csv").write_text("id,price,country,ordered\n" + "".join(f"{line}\n" for line in lines))
    done = aifx(folder, "add", "orders", "orders.csv", "--license", "MIT")
    assert done.returncode == 0, done.stderr


def test_a_contract_over_versions(tmp_path: Path) -> None:
    contract = '[[rule]]\ncolumn = "price"\ncheck = "range"\nat_least = 0\n[[rule]]\ncheck = "rows"\nat_least = 3\n'
    (tmp_path / "rules.toml").write_text(contract)
    orders(tmp_path, [1, -2, 3, 4])
    done = aifx(tmp_path, "expect", "orders", "rules.toml", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["rows"], found["dropped_by"]) == (0, 3, {"price.range": 1})
    assert [(rule["id"], rule["outcome"]) for rule in found["rules"]] == [("price.range", "dropped"), ("rows", "kept")]
    (row,) = found["rules"][0]["ids"]
    assert "price.range" in aifx(tmp_path, "why", row).stdout
    latest = catalog_of(tmp_path).latest("orders")
    orders(tmp_path, [1, -2, -3, 4, -5])
    (tmp_path / "orders.csv").unlink()  # what was read is not read again
    raw = catalog_of(tmp_path).latest("orders")
    assert raw != latest
    for _ in range(2):
        refused = aifx(tmp_path, "expect", "orders", "rules.toml")
        assert refused.returncode == 1
        assert "refused" in refused.stdout
        assert "orders still means the version before" in refused.stderr
        assert catalog_of(tmp_path).latest("orders") == raw
    assert "which was there already" in refused.stdout


def test_the_history_of_rules(tmp_path: Path) -> None:
    low: dict[str, Any] = {"column": "x", "check": "range", "at_least": 0}
    rules = [low, {"check": "rows", "at_least": 3}]
    for values in ([1, -2, 3, 4], [1, -2, -3, 4, -5]):
        judge(tmp_path, add_table(tmp_path, "data", {"x": values}), rules)
    found = contract_history(catalog_of(tmp_path), "data")
    assert [rule.id for rule in found.rules] == ["x.range", "rows"]
    versions = {rule.id: rule.versions for rule in found.rules}
    assert [(one.broken, one.rows) for one in versions["x.range"]] == [(1, 4), (3, 5)]
    assert [(one.value, one.outcome) for one in versions["rows"]] == [(3, "kept"), (2, "refused")]
    times = [str(one.time) for one in versions["rows"]]
    assert times == sorted(times)
    printed = aifx(tmp_path, "expect", "data", "--history").stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("refused") == 1


def test_an_inferred_contract_holds_and_finds_changes(tmp_path: Path) -> None:
    rows = 200
    columns: dict[str, Any] = {
        "id": list(range(rows)),
        "code": [f"{n:04d}-01-0{n % 9 + 1}" for n in range(rows)],
        "land": [("DE", "FR", 'a"\\b')[n % 3] for n in range(rows)],
        "price": [n * 37 % 101 + 0.5 for n in range(rows)],
        "note": [None if n % 4 else "x" * (n % 7 + 1) for n in range(rows)],
        "empty": [None] * rows,
        "flag": [n % 2 == 0 for n in range(rows)],
        "grade": [n % 5 for n in range(rows)],
    }
    version = add_table(tmp_path, "data", columns, files=2)
    reference, text, names = infer_contract(catalog_of(tmp_path), "data")
    (tmp_path / "rules.toml").write_text(text)
    rules = load_contract(tmp_path / "rules.toml")
    assert (reference, [rule.name for rule in rules]) == (version.reference, names)
    wanted = [
        "id.unique",
        "code.matches",
        "grade.values",
        "land.values",
        "price.distribution",
        "price.range",
        "note.not_null",
        "flag.type",
    ]
    assert set(wanted) <= set(names)
    made, outcomes = judge(tmp_path, version, [rule.settings for rule in rules])
    assert {one.outcome for one in outcomes} == {"kept"}
    assert row_ids(made) == row_ids(version)
    other = {
        **columns,
        "id": [0, 0, *range(2, rows)],
        "code": ["x", *columns["code"][1:]],
        "land": ["IT", *columns["land"][1:]],
        "price": [price + 90 for price in columns["price"]],
        "note": ["a long note"] * 40 + [None] * 160,
        "grade": [n % 6 for n in range(rows)],
    }
    after = add_table(tmp_path, "after", other)
    _, outcomes = judge(tmp_path, after, [rule.settings for rule in rules])
    broken = {one.id for one in outcomes if one.outcome != "kept"}
    assert broken == {
        "code.matches",
        "grade.values",
        "land.values",
        "price.range",
        "price.distribution",
        "note.length",
        "note.not_null",
    }
    judged = [rule.settings for rule in rules if rule.name == "id.unique"]
    assert judge(tmp_path, after, judged)[1][0].broken == 1


def test_a_key_of_many_rows_is_no_estimate(tmp_path: Path) -> None:
    ids = list(range(3000))
    version = add_table(tmp_path, "data", {"key": ids, "nearly": [*ids[:-1], 0]})
    names = infer_contract(catalog_of(tmp_path), version.reference)[2]
    assert [name for name in names if name.endswith(".unique")] == ["key.unique"]


def test_more_dropped_rows_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\ncolumn = "x"\ncheck = "range"\nat_least = 0\n')
    version = add_table(tmp_path, "data", {"x": [-1, -2, 3, 4, 5]})
    strict = aifx(tmp_path, "expect", "data", "rules.toml", "--max-dropped", "0.3")
    assert strict.returncode == 1
    assert "40.0% of the rows are dropped" in strict.stderr
    assert catalog_of(tmp_path).latest("data") == version.manifest.version
    assert aifx(tmp_path, "expect", "data", "rules.toml").returncode == 0
    assert catalog_of(tmp_path).latest("data") != version.manifest.version


def test_infer_replaces_no_file(tmp_path: Path) -> None:
    orders(tmp_path, [1, 2, 3])
    assert aifx(tmp_path, "expect", "orders", "mine.toml", "--infer").returncode == 0
    before = (tmp_path / "mine.toml").read_text()
    again = aifx(tmp_path, "expect", "orders", "mine.toml", "--infer")
    assert (again.returncode, (tmp_path / "mine.toml").read_text()) == (2, before)
    assert "mine.toml exists" in again.stderr
    assert aifx(tmp_path, "expect", "orders", "mine.toml").returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["orders", "--infer", "--history"], "--infer and --history cannot be used together"),
        (["orders", "rules.toml", "--history"], "--history takes no file"),
        (["orders", "none.toml"], "no file none.toml"),
        (["other", "--history"], "no data set 'other'"),
    ],
)
def test_wrong_usage(tmp_path: Path, args: list[str], message: str) -> None:
    orders(tmp_path, [1])
    done = aifx(tmp_path, "expect", *args)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_documented_contract(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(blocks("data-expect", "toml")[0])
    assert [rule.name for rule in load_contract(tmp_path / "rules.toml")] == [
        "price.range", "country.values", "rows", "ordered.freshness"
    ]  # fmt: skip
    orders(tmp_path, [1, 2])
    assert "rows is broken" in aifx(tmp_path, "expect", "orders", "rules.toml").stderr


RECIPE = """
[orders]
steps = [
    { add = { sources = ["orders.csv"], license = "MIT" } },
    { expect = { rules = "contracts/orders.toml" } },
    { dedupe = {} },
]

[shops]
steps = [{ add = { sources = ["shops.csv"], license = "MIT" } }]
"""
CONTRACT = """
[[rule]]
column = "shop"
check = "references"
to = "shops"
to_column = "id"
[[rule]]
check = "rows"
at_least = 3
"""


@pytest.mark.slow
def test_a_step_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "orders.toml").write_text(CONTRACT)
    (tmp_path / "shops.csv").write_text("id,land\n1,DE\n2,FR\n")
    (tmp_path / "orders.csv").write_text("shop,price\n1,3\n2,4\n1,5\n7,6\n")
    monkeypatch.chdir(tmp_path)
    plan = data_make_plan("orders")
    assert [one.name for one in plan.data_sets] == ["shops", "orders"]
    made = data_make()
    assert [(step.step, step.rows) for step in made.data_sets[1].steps] == [("add", 4), ("expect", 3), ("dedupe", 3)]
    again = data_make()
    assert not any(step.is_new for one in again.data_sets for step in one.steps)
    assert [one.reference for one in again.data_sets] == [one.reference for one in made.data_sets]
    (tmp_path / "orders.csv").write_text("shop,price\n1,3\n2,4\n7,6\n")
    for is_new in (True, False):
        refused = data_make("orders")
        assert [(step.step, step.is_new) for step in refused.data_sets[1].steps] == [
            ("add", is_new),
            ("expect", is_new),
        ]
        assert refused.exit_code == ExitCode.VERDICT
        assert refused.data_sets[1].reference == made.data_sets[1].reference
    inline = """rules = [{ check = "references", column = "shop", to = "shops", to_column = "id" },
        { check = "rows", at_least = 3 }]"""
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('rules = "contracts/orders.toml"', inline))
    assert not data_make("orders").data_sets[1].steps[1].is_new  # the same rules
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('rules = "contracts/orders.toml"', "rules = [{ check = 3 }]"))
    with pytest.raises(ConfigError, match="rules: rule 1 cannot be used"):
        data_make_plan()
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "contracts" / "orders.toml").write_text("[[rule]]\ncheck = 'nulls'\n")
    with pytest.raises(ConfigError, match=r"orders\.toml: rule 1 cannot be used"):
        data_make_plan()
    (tmp_path / "contracts" / "orders.toml").write_text(CONTRACT.replace('"shop"', '"store"'))
    with pytest.raises(ConfigError, match=r"orders, step 2 \(expect\): .*: no column 'store'"):
        data_make("orders")
