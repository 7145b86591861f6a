"""The suites that measure a project's data, checkpoints and start, on a tiny one."""

from __future__ import annotations

import json
import multiprocessing
import os

import jax
import pytest
import warm
from tiny_projects import make_tiny_project

from aifx.benchmarking import checkpoint, data, startup
from aifx.benchmarking.suites import SUITES, Bench
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core import processes
from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.progress import Reporter


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path / "project")


def measured(suite, module, folder, **options):
    bench = Bench(SUITES[suite], True, options, folder=folder)
    return {found.name.partition(".")[2]: found for found in module.measure(bench)}


def test_data_tells_what_a_batch_costs_and_how_many_units_that_is(project):
    found = measured("data", data, project)
    assert set(found) == {"read", "scattered", "prefetch", "place"}
    for result in found.values():
        assert result.num_bytes == 8 * (8 + 8 + 1) * 4
        assert result.params == {"rows": 8}
        assert result.unit == "rows"
        assert result.figures["units_per_s"] > 0
    slow = measured("data", data, project, set=["data.read_s=0.02"])
    assert min(slow["read"].samples_s) >= 0.02


def test_a_checkpoint_is_saved_and_restored_against_the_disk(project, monkeypatch):
    advance, beats = Reporter.advance, []
    monkeypatch.setattr(Reporter, "advance", lambda self, amount: beats.append(amount) or advance(self, amount))
    found = measured("checkpoint", checkpoint, project)
    assert {"disk_write", "stall", "save", "restore"} <= set(found)
    timed = sum(len(result.samples_s) for name, result in found.items() if name != "stall")
    assert len(beats) == timed + 1, "each of them may take minutes, the first save too"
    for stall, save in zip(found["stall"].samples_s, found["save"].samples_s, strict=True):
        assert stall <= save
    disk = sorted(found["disk_write"].samples_s)[1]
    assert found["save"].bound_s == disk, "the disk's own time for as many bytes is the least"
    if hasattr(os, "posix_fadvise"):
        assert {"disk_read", "restore_cold"} <= set(found)
    assert len({result.num_bytes for result in found.values()}) == 1


def test_each_save_has_arrays_that_were_not_saved_before(project, monkeypatch):
    """JAX keeps what it copied from a device with the array: a second save of it would wait for no copy."""
    save, saved = Checkpoints.save, []

    def seen(self, step, state, **more):
        saved.append(jax.tree.leaves(state))
        save(self, step, state, **more)

    monkeypatch.setattr(Checkpoints, "save", seen)
    measured("checkpoint", checkpoint, project)
    assert len(saved) == checkpoint.QUICK_REPEATS + 1
    assert len({id(leaf) for leaves in saved for leaf in leaves}) == sum(map(len, saved))


@pytest.mark.slow
def test_nothing_is_left_in_the_project(project):
    before = sorted(path.name for path in project.iterdir())
    measured("checkpoint", checkpoint, project)
    measured("data", data, project)
    after = sorted(path.name for path in project.iterdir() if path.name != "__pycache__")
    assert after == before


OPENED = """
import os
from aifx.benchmarking import worker, startup
from jax._src.xla_bridge import backends_are_initialized

os.chdir(folder)
startup.measure = lambda bench: iter([told.send(backends_are_initialized())][:0])
worker.run({"suite": "startup", "quick": True, "options": {}}, told.send)
"""


@pytest.mark.slow
def test_the_devices_are_free_for_the_starts_that_are_timed(project):
    """A TPU belongs to one process, and JAX takes most of a GPU's memory."""
    receiver, told = multiprocessing.Pipe(duplex=False)
    warm.server.set_forkserver_preload(warm.IMPORTS)
    process = warm.server.Process(target=exec, args=(OPENED, {"folder": str(project), "told": told}))
    process.start()
    told.close()
    first, second = receiver.recv(), receiver.recv()
    process.join()
    assert first["fingerprint"]["hardware"]["platform"] == "cpu"
    assert second is False
    assert process.exitcode == 0


STARTED = """
import json, os, sys, time
from pathlib import Path

run = sys.argv[-1]
if sys.argv[1] == "train" and run != "first":
    cache = Path(os.environ["AIFX_CACHE_DIR"])
    told = {"run": run, "here": os.getcwd(), "compiled": (cache / "jax").exists(), "caches": dict(os.environ)}
    open(os.environ["TOLD"], "a").write(json.dumps(told) + "\\n")
    (cache / "jax").mkdir(parents=True, exist_ok=True)
    Path("runs", run).mkdir(parents=True)
    Path("runs", run, "metrics.jsonl").write_text("{}\\n")
    time.sleep(600)
from aifx.commands.main import main
main()
"""
"""`aifx` as it is for the first start; later ones tell what they were started with, and are at their first step."""


@pytest.mark.representative("a benchmark")
def test_startup_runs_a_copy_of_the_project(project, tmp_path, monkeypatch):
    (project / "runs").mkdir()
    monkeypatch.setattr(processes, "PROGRAM", STARTED)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    found = measured("startup", startup, project)
    assert set(found) == {"help", "first", "cold", "warm"}
    assert all(result.samples_s[0] > 0 for result in found.values())
    assert list((project / "runs").iterdir()) == []
    cold, warmed = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [(told["run"], told["compiled"]) for told in (cold, warmed)] == [("cold", False), ("warm", True)]
    assert cold["here"] == warmed["here"] != str(project)
    assert cold["caches"]["AIFX_CACHE_DIR"] != os.environ.get("AIFX_CACHE_DIR")
    assert "JAX_COMPILATION_CACHE_DIR" not in cold["caches"]


@pytest.mark.slow
def test_a_project_that_cannot_start_says_why(project, monkeypatch):
    monkeypatch.setattr(startup, "_help_s", lambda: 0.1)
    with pytest.raises(AifxError, match=r"aifx train.*\b2\b") as raised:
        measured("startup", startup, project, set=["train.num_steps=no"])
    assert "train.num_steps" in raised.value.why


def test_bad_input_is_told_before_anything_is_measured(project, tmp_path):
    with pytest.raises(UsageError, match=r"no aifx\.toml"):
        measured("data", data, tmp_path)
    with pytest.raises(ConfigError):
        measured("data", data, project, set=["train.global_batch_size=none"])
