"""What recipes make of chats, of refused versions and on S3, side by side and by two commands at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import inprocess
import pytest
from prose import prose
from s3_server import s3_server
from test_chain import rows_and_answers

import aifx
from aifx.core.errors import ConfigError, DataError, ExitCode
from aifx.core.files import FolderBusy, holding
from aifx.data.versions.catalog import open_catalog
from aifx.verbs import recipes

STEPS = "{ clean = { rules = [] } }, { dedupe = { near = 0.8 } }, { pii = { mask = true } }"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts, of which one is there twice, and a line that is none."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    rows = [json.dumps({"text": f"{prose(40, n % 11)} ann@example.com"}) for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "no JSON"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(*names: str, steps: str = STEPS) -> None:
    add = '{ add = { sources = ["rows.jsonl"], license = "MIT", max_bad = 1.0 } }'
    tables = (f"[{name}]\nsteps = [{add}, {steps}]\n" for name in names)
    Path("recipe.toml").write_text("".join(tables))


def rule(**settings: Any) -> str:
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    return f"{{ expect = {{ rules = [{{ {pairs} }}] }} }}"


@pytest.mark.slow
@pytest.mark.representative("one version of several steps")
def test_a_refused_step_keeps_the_meaning_of_the_name_and_is_not_run_again(project: Path) -> None:
    write_recipe("corpus")
    before = aifx.data_make(workers=1).data_sets[0].reference
    split = "{ split = { validation = 0.3, test = 0.3, near = 1.0 } }"
    write_recipe("corpus", steps=f"{STEPS}, {rule(check='rows', at_least=12)}, {split}")
    made = aifx.data_make(workers=1)
    (corpus,) = made.data_sets
    assert (made.exit_code, corpus.reference, corpus.is_new) == (ExitCode.VERDICT, before, False)
    assert [(step.step, step.is_accepted, step.is_new) for step in corpus.steps][-2:] == [
        ("pii", True, True), ("expect", False, True),
    ]  # fmt: skip
    (again,) = aifx.data_make(workers=1).data_sets
    assert [(step.reference, step.is_new) for step in again.steps] == [(step.reference, False) for step in corpus.steps]
    assert aifx.data_make_plan().data_sets[0].steps[-1].why == "it is not accepted, and nothing after it runs"
    done = inprocess.run(["data", "make"], project, {"AIFX_CACHE_DIR": str(project / "cache")})
    assert (done.returncode, done.stdout.strip()) == (
        1,
        f"corpus: {before}, as before: {corpus.steps[-1].reference} is not accepted",
    )
    history = aifx.data_expect_history("corpus").rules[0].versions
    assert [(one.outcome, one.value) for one in history] == [("refused", 11)]
    write_recipe("corpus", steps=f"{STEPS}, {rule(check='rows', at_least=11)}, {split}")
    assert aifx.data_make(workers=1).exit_code == ExitCode.OK


@pytest.mark.slow
def test_a_rule_that_the_rows_before_it_cannot_have_is_named_before_anything_runs(project: Path) -> None:
    write_recipe("corpus", steps=f"{STEPS}, {rule(check='not_null', column='txt')}")
    with pytest.raises(ConfigError, match=r"corpus, step 5 \(expect\): rules: rule txt.not_null: no column 'txt'"):
        aifx.data_make(workers=1)
    assert len(open_catalog("datasets").versions("corpus")) == 1
    sql = "len(_cluster) > 0 AND typeof(language_probability) = 'FLOAT'"
    write_recipe("corpus", steps=f"{STEPS}, {rule(check='sql', id='types', sql=sql)}")
    assert aifx.data_make(workers=1).data_sets[0].steps[-1].dropped == 0


def test_the_written_recipe_finds_the_same_version(project: Path) -> None:
    steps = STEPS.replace("{ near = 0.8 } }", "{ near = 0.8 }, keep = true }")
    more = "{ dedupe = { semantic = 0.9 } }, { split = { validation = 0.3, test = 0.3 } }, { decontaminate = {} }"
    write_recipe("corpus", steps=f"{steps}, {more}, {rule(check='rows', at_least=1)}")
    made = aifx.data_make(workers=1).data_sets[0]
    assert len({step.reference for step in made.steps}) == 3
    written = aifx.data_recipe("corpus", output="again.toml").recipe
    assert written.count("keep = true") == 1
    again = aifx.data_make(recipe="again.toml", workers=1).data_sets[0]
    assert [(step.reference, step.is_new) for step in again.steps] == [(step.reference, False) for step in made.steps]


def test_a_second_command_at_the_same_time_is_refused(project: Path) -> None:
    write_recipe("corpus")
    with (
        holding(project / "datasets" / "corpus" / recipes.MAKING, "the recipe of corpus", "makes it"),
        pytest.raises(FolderBusy, match=r"the recipe of corpus(.|\n)*process \d+ makes it"),
    ):
        aifx.data_make()
    assert open_catalog("datasets").versions("corpus") == []
    assert aifx.data_make(workers=1).data_sets[0].is_new


@pytest.mark.slow
def test_two_commands_at_once_make_what_one_makes(project: Path) -> None:
    write_recipe("corpus")
    calm = aifx.data_make(workers=1, root="calm").data_sets[0].reference
    command = [sys.executable, "-P", "-m", "aifx.commands.main", "data", "make", "--workers", "1"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert 0 in (both[0].returncode, both[1].returncode)
    for process, error in zip(both, errors, strict=True):
        assert process.returncode == 0 or "makes it" in error, error
    assert open_catalog("datasets").manifest("corpus").reference == calm
    assert not list((project / "datasets" / "corpus").glob(".work-*"))
    assert not aifx.data_make(workers=1).data_sets[0].is_new


@pytest.mark.slow
@pytest.mark.representative("data sets side by side")
def test_data_sets_that_do_not_read_each_other_are_made_side_by_side(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_recipe("one", "two")
    with open("recipe.toml", "a") as file:
        file.write('[blend]\nsteps = [{ mix = { sets = ["one:1", "two:1"] } }]\n')
    calm = aifx.data_make(root="calm", workers=2)
    monkeypatch.setattr(recipes, "PROCESS_BYTES", 1)  # each is enough work for a process of its own
    caplog.set_level("INFO", "aifx")
    made = aifx.data_make(workers=2)
    assert "side by side: one, two" in caplog.messages
    assert [(one.name, one.reference) for one in made.data_sets] == [
        (one.name, one.reference) for one in calm.data_sets
    ]
    write_recipe("one", "two", steps=f"{STEPS}, {rule(check='rows', at_least=100)}")
    refused = aifx.data_make(workers=2)
    assert (refused.exit_code, refused.data_sets[0].reference) == (ExitCode.VERDICT, made.data_sets[0].reference)
    write_recipe("one", "two", steps=f"{STEPS}, {{ split = {{ validation = 0.0001 }} }}")
    with pytest.raises(DataError, match=r"(one|two), step 5 \(split\): no row of (one|two) is for"):
        aifx.data_make(workers=2)


@pytest.mark.slow
def test_chats_have_the_rows_and_answers_of_separate_steps(project: Path) -> None:
    answers = [f"{prose(20, n % 7)} Write to ann{n % 7}@example.com." for n in range(12)]
    chats = [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    (project / "chats.jsonl").write_text("\n".join([*map(json.dumps, chats), "no JSON", '{"messages": 3}']))
    root = str(project / "apart")
    aifx.data_add("corpus", "chats.jsonl", license="MIT", max_bad=2, root=root, workers=1)
    (row, *_), *_ = aifx.data_query("corpus", "SELECT _row FROM data", root=root).rows
    (project / "labels.csv").write_text(f"row,label\n{row},good\n")
    aifx.data_label_import("corpus", "labels.csv", root=root)
    aifx.data_label_apply("corpus", root=root, workers=1)
    aifx.data_dedupe("corpus", root=root, workers=1)
    aifx.data_pii("corpus", mask=True, root=root, workers=1)
    aifx.data_split("corpus", validation=0.3, test=0.3, root=root, workers=1)
    (project / "recipe.toml").write_text(
        '[corpus]\nsteps = [{ add = { sources = ["chats.jsonl"], license = "MIT", max_bad = 2.0 } }, '
        "{ label_apply = {} }, { dedupe = {} }, { pii = { mask = true } }, "
        "{ split = { validation = 0.3, test = 0.3 } }]"
    )
    aifx.data_add("corpus", "chats.jsonl", license="MIT", max_bad=2, workers=1)
    aifx.data_label_import("corpus", "labels.csv")
    made = aifx.data_make(workers=1).data_sets[0]
    assert [step.dropped for step in made.steps] == [2, 0, 5, 0, 0]
    assert rows_and_answers("datasets") == rows_and_answers(root)
    (one,) = aifx.data_why(row, dataset="corpus").histories
    assert [(step.step, step.outcome, [label.label for label in step.labels]) for step in one.steps][:2] == [
        ("add", "added", []), ("label", "changed", ["good"]),
    ]  # fmt: skip
    assert aifx.data_why("chats.jsonl:13", dataset="corpus").quarantined


@pytest.mark.slow
@pytest.mark.representative("one version of several steps")
def test_a_remote_root_gets_the_version_of_a_local_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe("corpus", steps=f"{STEPS}, {rule(check='rows', at_least=1)}")
    local = aifx.data_make(workers=1).data_sets[0]
    with s3_server(monkeypatch):
        root = "s3://bucket/datasets"
        made = aifx.data_make(root=root, workers=1).data_sets[0]
        assert made.reference == local.reference
        assert [step.is_new for step in aifx.data_make(root=root, workers=1).data_sets[0].steps] == [False] * 5
        assert rows_and_answers(root) == rows_and_answers("datasets")
    assert not [name for name in os.listdir(project) if name.startswith("s3")]
