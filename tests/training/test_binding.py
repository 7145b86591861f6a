"""A checkpoint is bound to its run and to the files that its numbers rest on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAt

from aifx.checkpoint.manifest import list_bindings, read_checkpoint, read_manifest
from aifx.core.artifact import MANIFEST
from aifx.core.digests import sha256_of
from aifx.core.errors import CheckpointError
from aifx.loading.restore import restore_run
from aifx.runs.binding import read_digests


@pytest.fixture
def trained(ended: Path, tiny):
    """The same as `tiny`, with the run as if it was killed after step 8."""
    shutil.copytree(ended / "runs", tiny.root / "runs")
    shutil.rmtree(tiny.run().checkpoints / "12")
    return tiny


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1, path
    path.write_text(text)


def refused(tiny, path: Path, *settings: str) -> CheckpointError:
    """The error of going on, which names the file and the two ways out, and costs nothing that was saved."""
    before = sorted(p.name for p in tiny.run().checkpoints.iterdir())
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as found:
        tiny.train("checkpoint.keep_best=0", *settings)
    assert str(path) in found.value.hint
    assert found.value.hint.endswith("aifx train --run main --fork NAME")
    assert sorted(p.name for p in tiny.run().checkpoints.iterdir()) == before
    return found.value


@pytest.mark.slow
def test_a_run_that_nobody_touched_goes_on(trained) -> None:
    digests = json.loads(trained.run().digests.read_text())
    assert trained.train("checkpoint.keep_best=0").resumed_from == 8
    assert json.loads(trained.run().digests.read_text()) == digests
    assert not [e for e in trained.events() if e["event"] in ("settings_changed", "kernel_replaced")]


@pytest.mark.slow
def test_a_setting_that_was_changed_in_the_run_and_the_project_is_refused(trained, logged: list[str]) -> None:
    run = trained.run()
    edit(run.config, r"noise = 0.1", "noise = 0.5")
    error = refused(trained, run.config, "data.noise=0.5")
    assert re.fullmatch(r"data\.noise = 0\.5\b.* 0\.1", error.why)
    fork = trained.train("data.noise=0.5", run="fork", fork_from="main")
    assert (fork.status, fork.resumed_from) == ("completed", 8)
    assert any("data.noise = 0.5" in line and "fork" in line for line in logged)
    assert trained.train("data.noise=0.5", run="fork").already


@pytest.mark.parametrize("how", ["missing", "torn", "values", "records", "data"])
def test_digests_that_are_not_those_of_the_run_are_refused(trained, how: str) -> None:
    path = trained.run().digests
    match how:
        case "missing":
            path.unlink()
        case "torn":
            path.write_text(path.read_text()[:40])
        case "values":
            edit(path, r'"data.noise": 0.1', '"data.noise": 0.5')
        case "records":
            edit(path, r'"provenance.json": "....', '"provenance.json": "0000')
        case "data":
            edit(path, r'"digest": "....', '"digest": "0000')
    error = refused(trained, path)
    assert {"missing": "is missing", "torn": "cannot be read", "values": "settings"}.get(how, how) in error.why
    assert str(path) in verified(trained, 1)["unusable"][0]


def verified(tiny, code: int) -> Any:
    found, out, err = tiny.command("ckpt", "verify", "8", "--json")
    assert found == code, out + err
    return json.loads(out)


def test_what_a_checkpoint_names_has_whole_digests(trained) -> None:
    run = trained.run()
    provenance = run.provenance.read_bytes()
    bound = read_manifest(run.checkpoints / "8").run
    assert bound == read_digests(run).binding()
    assert bound["records"] == {"provenance.json": sha256_of(provenance)}
    assert bound["data"] == {"digest": json.loads(provenance)["data_digest"], "versions": []}
    digests = re.findall(r'"([0-9a-f]{12,})"', json.dumps({**bound, "id": ""}))
    assert {len(digest) for digest in digests} == {64}


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_another_record_of_its_origin_is_named(trained, how: str) -> None:
    path = trained.run().provenance
    assert verified(trained, 0)["changed"] == []
    if how == "missing":
        path.unlink()
    else:
        edit(path, r'"cores": \d+', '"cores": 1')
    (changed,) = verified(trained, 1)["changed"]
    assert str(path) in changed
    assert f"changed: {path}" in trained.command("ckpt", "verify", "8")[1]


@pytest.mark.slow
def test_another_record_of_its_origin_stops_no_training(trained) -> None:
    edit(trained.run().provenance, r'"cores": \d+', '"cores": 1')
    assert trained.train("checkpoint.keep_best=0").resumed_from == 8


def test_a_checkpoint_of_another_run_is_refused(trained, ended: Path) -> None:
    """Same project, same settings, same step: what only the other run's data or code explains would pass for ours."""
    trained.train("checkpoint.keep_best=0", run="other")
    ours = trained.run().checkpoints / "8"
    shutil.rmtree(ours)
    shutil.copytree(trained.run("other").checkpoints / "12", trained.run().checkpoints / "12")
    with pytest.raises(CheckpointError, match=r"12.* another run") as found:
        trained.train("checkpoint.keep_best=0")
    assert found.value.hint.startswith("mv ")
    shutil.copytree(ended / "runs/main/checkpoints/8", ours)
    with pytest.raises(CheckpointError, match=r"12.* another run"):
        trained.train("checkpoint.keep_best=0")


def test_settings_that_may_change_are_reported(trained, logged: list[str]) -> None:
    result = trained.train("checkpoint.keep_best=1", "checkpoint.every=3", "model.scan_layers=true")
    assert (result.status, result.resumed_from) == ("completed", 8)
    (event,) = [e for e in trained.events() if e["event"] == "settings_changed"]
    assert event["changes"] == [
        {"key": "model.scan_layers", "old": False, "new": True},
        {"key": "checkpoint.every", "old": 4, "new": 3},
        {"key": "checkpoint.keep_best", "old": 0, "new": 1},
    ]
    changes = "model.scan_layers = false -> true, checkpoint.every = 4 -> 3, checkpoint.keep_best = 0 -> 1"
    assert f"settings_changed: {changes}\n" in trained.run().log.read_text()
    assert "checkpoint.every = 4 -> 3, checkpoint.keep_best" in "".join(logged)


def test_a_setting_that_a_newer_version_brings_changes_nothing(trained) -> None:
    """Digests that an older version of aifx wrote lack it: it must be as if it was there."""
    from aifx.runs import binding

    run = trained.run()
    old = binding.read_digests(run)
    old.settings = {key: value for key, value in old.settings.items() if key not in ("data.salt", "data.tags")}
    old.write(run)
    artifact, manifest = read_checkpoint(run.checkpoints / "8")
    bound = replace(manifest, run=old.binding())
    (run.checkpoints / "8" / MANIFEST).write_bytes(bound.artifact(artifact.files).encode())
    edit(run.config, r"salt = 0", "salt = 1")
    assert re.fullmatch(r"data\.salt = 1\b.* 0", refused(trained, run.config, "data.salt=1").why)
    edit(run.config, r"salt = 1", "salt = 0")
    assert trained.train("checkpoint.keep_best=0").status == "completed"


def test_a_run_whose_checkpoints_are_all_damaged_begins_with_its_kernels_bound(trained) -> None:
    run = trained.run()
    kernels = {
        "schema_version": 3,
        "devices": {"another kind": [{"call": "{}", "implementation": "xla", "config": {}}]},
    }
    run.kernels.write_text(json.dumps(kernels))
    for manifest in run.checkpoints.glob("*/manifest.json"):
        manifest.write_text("{}")
    trained.train()
    assert json.loads(run.digests.read_text())["kernels"].keys() >= {"another kind"}
    (last,) = list_bindings(run.checkpoints).keys() - {4, 8}
    assert "another kind" in list_bindings(run.checkpoints)[last]["kernels"]


def test_a_run_in_an_old_format_is_refused(trained) -> None:
    path = trained.run().kernels
    path.write_text(json.dumps({"schema_version": 2, "devices": {}}))
    with pytest.raises(CheckpointError) as refused:
        trained.train("checkpoint.keep_best=0")
    assert all(fact in refused.value.why for fact in (str(path), "format 2", "format 3"))


@pytest.mark.parametrize("width", [8, *(pytest.param(width, marks=pytest.mark.slow) for width in (64, 200))])
def test_frozen_arrays_are_the_same_bits_when_a_run_resumes(tiny, width: int) -> None:
    """Although the first start has a program that makes all arrays at once, which may round otherwise."""
    settings = (f"model.width={width}", "train.validate_every=0")
    stop = StopAt(5)
    assert tiny.train(*settings, hooks=[stop], stop=stop.signals).status == "preempted"
    assert tiny.train(*settings).status == "completed"


def test_other_frozen_arrays_than_those_of_the_checkpoint_are_refused(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint holds their digest in place of them."""
    assert "shift" not in str(list(read_manifest(trained.run().checkpoints / "8").arrays))
    restored = restore_run(trained.run(), trained.project)
    assert set(restored.frozen) == {"shift"}
    other = {"shift": restored.frozen["shift"] + 1}
    monkeypatch.setattr("aifx.loading.base_weights.make_frozen", lambda specs, seed, layout: other)
    for use in (
        lambda: restore_run(trained.run(), trained.project),
        lambda: trained.train("train.num_steps=20", run="fork", fork_from="main"),
    ):
        with pytest.raises(CheckpointError, match="frozen arrays of run"):
            use()
