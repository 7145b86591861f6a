"""The records that a checkpoint names of its run's origin, compared with the files that are there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from stored_versions import LIMITS, make_version

from aifx.core.project import Project, RunDirectory
from aifx.curation.execution import execute
from aifx.curation.mix import mix_of, parse_sets
from aifx.data.versions.catalog import dataset_record, open_catalog
from aifx.kernels.choices_file import write_kernel_choices
from aifx.kinds import load_config
from aifx.runs.binding import binding_errors, open_digests, record_errors
from aifx.runs.provenance import provenance


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


def started_run(project: Project, dataset: str | None = None) -> tuple[RunDirectory, dict[str, Any]]:
    """A run whose training began, and what a checkpoint of it names."""
    run = project.run("main")
    run.path.mkdir(parents=True, exist_ok=True)
    record = None if dataset is None else dataset_record(dataset, project)
    run.provenance.write_text(json.dumps(provenance(project.root, data_digest="0" * 64, devices=[], dataset=record)))
    return run, open_digests(run, load_config(project, []), is_fresh=True).binding()


def test_the_versions_of_a_mix(project: Project) -> None:
    one, other = (make_version(project, name, {"text": [name] * 4}) for name in ("books", "web"))
    catalog = open_catalog(project.datasets, project)
    mix = execute(mix_of(parse_sets(["books:1", "web:1"], []), catalog), "mix", catalog, LIMITS).version
    run, bound = started_run(project, "mix")
    assert bound["data"]["versions"] == [version.manifest.whole_reference for version in (mix, one, other)]
    assert list(record_errors(run, project, 1, bound)) == []
    manifest = one.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    (error,) = record_errors(run, project, 1, bound)
    assert str(manifest.parent) in error.what
    manifest.unlink()
    assert list(record_errors(run, project, 1, bound)) == []


@pytest.mark.parametrize("how", ["link", "dangling", "fifo", "folder", "missing", "changed"])
def test_a_record_that_is_no_file_has_changed(project: Project, how: str) -> None:
    run, bound = started_run(project)
    assert list(record_errors(run, project, 1, bound)) == []
    moved = run.provenance.rename(run.path / "elsewhere.json")
    match how:
        case "link" | "dangling":
            run.provenance.symlink_to(moved if how == "link" else run.path / "nothing")
        case "fifo":
            os.mkfifo(run.provenance)
        case "folder":
            run.provenance.mkdir()
        case "changed":
            run.provenance.write_bytes(moved.read_bytes()[:-1])
    (error,) = record_errors(run, project, 1, bound)
    assert str(run.provenance) in error.what


@pytest.mark.parametrize("how", ["link", "fifo"])
def test_digests_that_are_no_file_are_an_error_of_the_checkpoint(project: Project, how: str) -> None:
    run, bound = started_run(project)
    config = load_config(project, [])
    moved = run.digests.rename(run.path / "elsewhere.json")
    run.digests.symlink_to(moved) if how == "link" else os.mkfifo(run.digests)
    (error,) = binding_errors(run, config, 1, bound)
    assert str(run.digests) in error.why
    assert str(run.digests) in error.hint


@pytest.mark.parametrize("change", ["asset", "missing asset", "setting", "kernel", "missing kernels"])
def test_a_changed_file_that_numbers_depend_on(project: Project, change: str) -> None:
    run, config = project.run("main"), load_config(project, [])
    run.assets.mkdir(parents=True)
    tokenizer = run.assets / "tokenizer.json"
    tokenizer.write_text("{}")
    choice = {"call": "attention", "implementation": "xla", "config": []}
    write_kernel_choices(run, {"cpu": [choice]})
    run, bound = started_run(project)
    assert list(binding_errors(run, config, 1, bound)) == []
    match change:
        case "asset":
            tokenizer.write_text("[]")
        case "missing asset":
            tokenizer.unlink()
        case "setting":
            config = load_config(project, ["optimizer.learning_rate=0.5"])
        case "kernel":
            write_kernel_choices(run, {"cpu": [choice | {"implementation": "reference"}]})
        case "missing kernels":
            run.kernels.unlink()
    (error,) = binding_errors(run, config, 1, bound)
    path = tokenizer if "asset" in change else run.config if change == "setting" else run.kernels
    assert str(path) in error.what
    assert str(path) in error.hint
