"""`--request` of `aifx data add` and `aifx data make`: done once, and reported again as it was reported first.

`test_killed_writers` kills such commands.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import inprocess
import pytest
from adding import LIMITS, environ_of
from toy_steps import WithoutLetter

import aifx
from aifx.core.errors import DataError, UsageError
from aifx.core.requests import RequestDone, find_request
from aifx.core.stores import open_store
from aifx.curation.execution import execute
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.requests import check_request, finish_request, read_meaning, write_meaning

RECIPE = """
[notes]
steps = [{ add = { sources = ["raw"], license = "MIT" } }]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "raw").mkdir()
    write(tmp_path, "a", "one", "two")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, file: str, *texts: str) -> None:
    (project / "raw" / f"{file}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))


def catalog_of(project: Path) -> Catalog:
    return open_catalog(str(project / "datasets"))


def run(project: Path, *args: str) -> Any:
    return inprocess.run(["data", *args], project, environ_of(project))


def test_an_addition_is_reported_again_and_moves_no_name(project: Path) -> None:
    first = run(project, "add", "corpus", "raw", "--license", "MIT", "--request", "r1", "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["request"], document["is_repeated"], document["rows"]) == ("r1", False, 2)
    write(project, "b", "three")
    assert run(project, "add", "corpus", "raw", "--license", "MIT", "--request", "r2").returncode == 0
    now = catalog_of(project).latest("corpus")
    assert now != document["reference"].partition("@")[2]
    again = run(project, "add", "corpus", "raw", "--license", "MIT", "--request", "r1", "--json")
    assert json.loads(again.stdout) == document | {"is_repeated": True}
    assert catalog_of(project).latest("corpus") == now
    text = run(project, "add", "corpus", "raw", "--license", "MIT", "--request", "r1").stdout
    assert "as an earlier call with this request id reported" in text


def test_a_refused_addition_is_refused_again_though_its_file_is_repaired(project: Path) -> None:
    (project / "raw" / "b.jsonl").write_text("no JSON\n")
    command = ["add", "corpus", "raw", "--license", "MIT", "--max-bad", "0", "--request", "r1"]
    assert run(project, *command).returncode == 1
    (project / "raw" / "b.jsonl").unlink()
    again = run(project, *command)
    assert (again.returncode, "b.jsonl" in again.stdout) == (1, True), again.stdout
    assert catalog_of(project).latest("corpus") is None
    assert catalog_of(project).names() == []
    assert run(project, *command[:-1], "r2").returncode == 0
    assert run(project, *command).returncode == 1


def test_a_step_keeps_the_requests_of_the_name(project: Path) -> None:
    aifx.data_add("corpus", "raw", license="MIT", request="r1")
    last = read_meaning(catalog_of(project).store.below("corpus")).last
    catalog = catalog_of(project)
    execute(WithoutLetter((catalog.open("corpus"),), "q"), "corpus", catalog, LIMITS)
    assert read_meaning(catalog.store.below("corpus")).last == last
    assert catalog.open("corpus").manifest.step.name != "add"
    assert aifx.data_add("corpus", "raw", license="MIT", request="r1").is_repeated
    assert catalog.open("corpus").manifest.step.name != "add"
    assert not aifx.data_add("corpus", "raw", license="MIT", request="r2").is_repeated
    assert catalog.open("corpus").manifest.step.name == "add"


@pytest.mark.parametrize(("id", "why"), [("r1", "it is of data add corpus raw"), ("", "letters"), ("a/b", "letters"),
                                         ("x" * 64, "63 at most"), ("-x", "begins"), ("é", "letters")])  # fmt: skip
def test_an_id_of_another_act_and_what_is_no_id(project: Path, id: str, why: str) -> None:
    aifx.data_add("corpus", "raw", license="MIT", request="r1")
    (project / "other").mkdir()
    with pytest.raises(UsageError) as raised:
        aifx.data_add("corpus", "other", license="MIT", request=id)
    assert why in raised.value.why
    (project / "recipe.toml").write_text(RECIPE.replace("notes", "corpus"))
    with pytest.raises(UsageError):
        aifx.data_make(request=id)


def test_a_recipe_is_made_once_per_request(project: Path) -> None:
    first = run(project, "make", "--request", "r1", "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["request"], document["is_repeated"]) == ("r1", False)
    write(project, "b", "three")
    again = json.loads(run(project, "make", "--request", "r1", "--json").stdout)
    assert again["is_repeated"]
    assert [{**one, "is_repeated": False} for one in again["data_sets"]] == document["data_sets"]
    assert not aifx.data_make(request="r2").is_repeated
    assert "as an earlier call with this request id reported" in run(project, "make", "--request", "r1").stdout


def test_a_request_counts_once_a_name_leads_to_it(tmp_path: Path) -> None:
    """Many requests and moves without one; one that was written and never named; one whose file is damaged."""
    store = open_store(str(tmp_path))
    asked = [request for number in range(20) if (request := find_request(f"r{number}", "act"))]
    for number, request in enumerate(asked):
        check_request(store, request)
        finish_request(store, f"v{number}" if number % 3 else None, request, {"number": number})
        if number % 4 == 0:
            write_meaning(store, f"w{number}", read_meaning(store).last)
    assert read_meaning(store).version == "v19"
    for number, request in enumerate(asked):
        with pytest.raises(RequestDone) as done:
            finish_request(store, "another", request, {})
        assert done.value.document == {"number": number}
    assert read_meaning(store).version == "v19"
    before, lost = (tmp_path / "latest").read_bytes(), find_request("lost", "act")
    assert lost is not None
    finish_request(store, "lost", lost, {})
    (tmp_path / "latest").write_bytes(before)  # as if a kill had come before
    check_request(store, lost)
    for path in sorted((tmp_path / "requests").iterdir()):
        path.write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        check_request(store, asked[0])


def test_of_equal_requests_at_a_time_one_is_done(project: Path) -> None:
    def ask(_: int) -> object:
        try:
            return aifx.data_add("corpus", "raw", license="MIT", workers=1, request="r1")
        except Exception as e:
            return e

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, range(4)))
    done = [one for one in results if isinstance(one, aifx.verbs.data_add.AddedFiles)]
    assert sum(not one.is_repeated for one in done) == 1, results
    assert len({one.reference for one in done}) == 1
    others = [one for one in results if one not in done]
    assert all(isinstance(one, aifx.core.files.FolderBusy) for one in others), others
