"""A run's kernels: chosen before it compiles, kept in the run, the same when it resumes whatever was measured since."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import odd_op
import pytest

from aifx.checkpoint.manifest import list_bindings
from aifx.config.sections import KernelsSection
from aifx.core.errors import EnvironmentFault
from aifx.core.project import Project, RunDirectory
from aifx.kernels.choice import ProjectCall, RunChoices, run_choices, winners_path
from aifx.kernels.choices_file import write_kernel_choices
from aifx.kernels.verification import may_have_accelerator
from aifx.kinds import load_config
from aifx.parallel.connections import free_port
from aifx.runs.binding import kernel_digest, read_digests
from jax_kernels._ops.attention import ATTENTION
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.swiglu import SWIGLU, swiglu
from jax_kernels.dispatch import choose as choose_implementation
from jax_kernels.dispatch import using
from jax_kernels.implementations import current_device, interpreting, make_device
from jax_kernels.op import Choice
from jax_kernels.ops import OPS, small_cases
from jax_kernels.tuning import TuningCache

ODD_TASK = """
import odd_op

from jax_kernels.dispatch import run


class OddObjective(TinyObjective):
    def sums(self, model, params, batch, ctx):
        bias = run(odd_op.QUICK, odd_op.Call(8), "auto", params["bias"])
        return super().sums(model, {**params, "bias": bias}, batch, ctx)


class OddTask(TinyTask):
    objective_class = OddObjective
"""

CALL = Call(1, 8, 8, 2, 2, 8, "float32", True, None, 0, False, 0.25, None)


def choose(project: Project, *settings: str, keep: bool = True) -> Choice:
    config = load_config(project, [*settings])
    choices = run_choices(project.run("main"), config.kernels)
    with using(choices):
        found = choose_implementation(ATTENTION, CALL, "auto")
    if keep:
        write_new(project.run("main"), choices)
    return found


def write_new(run: RunDirectory, choices: RunChoices) -> list[dict[str, Any]]:
    """Write the choices that were made. Returns the events of those that replace another."""
    if new := choices.collect():
        write_kernel_choices(run, choices.entries)
    return [choice.event() for choice in new if choice.before is not None]


def open_project(tmp_path: Path, monkeypatch) -> Project:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "aifx.toml").touch()
    project = Project(tmp_path)
    project.run("main").path.mkdir(parents=True)
    return project


def test_what_was_measured_since_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    project = open_project(tmp_path, monkeypatch)
    first = choose(project)
    assert first.implementation == "xla"
    TuningCache(winners_path(), current_device()).put(ATTENTION, CALL, ATTENTION.choice("reference", (), "measured"))
    assert choose(project) == first
    project.run("main").kernels.unlink()
    assert choose(project, keep=False).implementation == "reference", (
        "a run that chose nothing yet takes what was measured"
    )
    assert not project.run("main").kernels.exists()


def test_the_project_can_ask(tmp_path: Path, monkeypatch) -> None:
    project = open_project(tmp_path, monkeypatch)
    assert choose(project, "kernels.attention=reference") == Choice("reference", (), "asked for")


def test_what_another_device_chose_is_not_taken(tmp_path: Path, monkeypatch) -> None:
    project = open_project(tmp_path, monkeypatch)
    choose(project, "kernels.attention=reference")
    path = project.run("main").kernels
    document = json.loads(path.read_text())
    ((kind, chosen),) = document["devices"].items()
    path.write_text(json.dumps(document | {"devices": {"NVIDIA H100 80GB HBM3": chosen}}))
    assert choose(project).implementation == "xla"
    devices = json.loads(path.read_text())["devices"]
    assert list(devices) == ["NVIDIA H100 80GB HBM3", kind], "what was chosen for the other device is kept"
    assert devices["NVIDIA H100 80GB HBM3"] == chosen
    path.write_text("{")
    assert choose(project).implementation == "xla"


def test_a_choice_that_this_version_no_longer_has_is_replaced(tmp_path: Path, monkeypatch, logged: list[str]) -> None:
    project = open_project(tmp_path, monkeypatch)
    choose(project)
    path = project.run("main").kernels
    document = json.loads(path.read_text())
    ((kind, (entry,)),) = document["devices"].items()
    path.write_text(json.dumps(document | {"devices": {kind: [{**entry, "implementation": "pallas_vpu"}]}}))
    before = kernel_digest(json.loads(path.read_text())["devices"][kind])
    choices = run_choices(project.run("main"), load_config(project).kernels)
    with using(choices):
        assert choose_implementation(ATTENTION, CALL, "auto").implementation == "xla"
    events = write_new(project.run("main"), choices)
    assert "pallas_vpu" in logged[0]
    assert "no such implementation" in logged[0]
    assert [(e["op"], e["old"]["implementation"], e["new"]["implementation"]) for e in events] == [
        ("attention", "pallas_vpu", "xla")
    ]
    kept = json.loads(path.read_text())["devices"][kind]
    assert [c["implementation"] for c in kept] == ["pallas_vpu", "xla"]
    assert kernel_digest(kept[: before["count"]]) == before, "an earlier checkpoint names the choice that was replaced"
    assert choose(project).implementation == "xla"


def test_a_configuration_that_a_kernel_no_longer_has_is_replaced(
    tmp_path: Path, monkeypatch, logged: list[str]
) -> None:
    """Before, the kernel looked for its block sizes in it: KeyError."""
    project = open_project(tmp_path, monkeypatch)
    run, call = project.run("main"), small_cases(SWIGLU)[0].call("float32")
    monkeypatch.setenv("AIFX_KERNELS__SWIGLU", "pallas_triton")
    with interpreting(make_device("gpu", "NVIDIA H100 80GB HBM3")):
        choices = run_choices(run, load_config(project).kernels)
        with using(choices):
            first = choose_implementation(SWIGLU, call, "auto")
        assert write_new(run, choices) == []
        document = json.loads(run.kernels.read_text())
        ((kind, (entry,)),) = document["devices"].items()
        assert entry["source"] == SWIGLU.source_digest("pallas_triton") == first.source

        old = {**entry, "config": {"block_m": 64}, "source": "of last year"}
        run.kernels.write_text(json.dumps(document | {"devices": {kind: [old]}}))
        before = kernel_digest([old])
        choices = run_choices(run, load_config(project).kernels)
        with using(choices):
            operands = [jax.ShapeDtypeStruct(s, "float32") for s in ((32, 16), (16, 64), (16, 64))]
            jax.eval_shape(swiglu, *operands)
            assert choose_implementation(SWIGLU, call, "auto") == first
        events = write_new(run, choices)
    (warning,) = logged
    assert re.search("swiglu: pallas_triton.*block_m=64.*pallas_triton$", warning)
    assert [(e["op"], e["old"]["config"], e["new"]["config"]) for e in events] == [
        ("swiglu", {"block_m": 64}, entry["config"])
    ]
    kept = json.loads(run.kernels.read_text())["devices"][kind]
    assert kept == [old, entry]
    assert kernel_digest(kept[: before["count"]]) == before, "an earlier checkpoint names the choice that was replaced"


def test_a_configuration_that_a_changed_kernel_still_has_stays(tmp_path: Path, monkeypatch, logged: list[str]) -> None:
    project = open_project(tmp_path, monkeypatch)
    first = choose(project)
    path = project.run("main").kernels
    document = json.loads(path.read_text())
    ((kind, (entry,)),) = document["devices"].items()
    path.write_text(json.dumps(document | {"devices": {kind: [{**entry, "source": "of last year"}]}}))
    with using(run_choices(project.run("main"), load_config(project).kernels)):
        assert choose_implementation(ATTENTION, CALL, "auto") == first
    assert not logged


def test_each_op_has_its_key() -> None:
    fields = KernelsSection.model_fields
    assert fields.keys() == OPS.keys()
    for name, field in fields.items():
        assert {"auto", *OPS[name].implementations} == set(get_args(field.annotation)), name


@pytest.mark.slow
def test_a_new_run_tries_kernels_on_a_device_that_nothing_was_measured_on(tiny, monkeypatch, logged: list[str]) -> None:
    """In another process, since the kernel may crash or hang. A later run takes the verdict."""
    monkeypatch.setattr("aifx.kernels.verification.may_have_accelerator", lambda: True)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tiny.root / "cache"))
    with (tiny.root / "tiny.py").open("a") as file:
        file.write(ODD_TASK)
    settings = ["task.kind=tiny:OddTask", "train.num_steps=2", "train.validate_every=0"]
    assert tiny.train(*settings).status == "completed"
    assert any("quick: off fails" in s and "2.5e-01" in s for s in logged)
    assert "quick: off fails" in tiny.run().log.read_text()
    for run in ("main", "second"):
        (entry,) = json.loads(tiny.run(run).kernels.read_text())["devices"]["cpu"]
        assert entry["implementation"] == "good"
        assert "verified" in entry["reason"]
        logged.clear()
        tiny.train(*settings, run="second")
        assert not any("quick" in text for text in logged)


class Refusing:
    """`write_kernel_choices` on a disk that refuses it `times` times."""

    def __init__(self, number: int, times: float) -> None:
        self.number, self.left = number, times

    def __call__(self, run: RunDirectory, devices: Mapping[str, Any]) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(self.number, os.strerror(self.number), str(run.kernels))
        write_kernel_choices(run, devices)


def odd_settings(tiny) -> list[str]:
    with (tiny.root / "tiny.py").open("a") as file:
        file.write(ODD_TASK)
    return ["task.kind=tiny:OddTask", "checkpoint.disk_timeout_s=0"]


@pytest.mark.slow
def test_choices_that_the_disk_refuses_are_there_before_a_checkpoint(tiny, monkeypatch, logged: list[str]) -> None:
    monkeypatch.setattr("aifx.training.prepare.write_kernel_choices", Refusing(errno.ENOSPC, times=2))
    settings = odd_settings(tiny)
    assert tiny.train(*settings).status == "completed"
    (text,) = (text for text in logged if "kernels.json" in text and "training goes on" in text)
    assert "No space left" in text
    (entries,) = json.loads(tiny.run().kernels.read_text())["devices"].values()
    bound = list_bindings(tiny.run().checkpoints)
    assert sorted(bound) == [8, 12]
    assert all(one["kernels"]["cpu"] == kernel_digest(entries) for one in bound.values())
    assert read_digests(tiny.run()).kernels["cpu"] == kernel_digest(entries)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_choices_that_the_disk_refuses_for_good_end_the_run(tiny, number: int, monkeypatch) -> None:
    monkeypatch.setattr("aifx.training.prepare.write_kernel_choices", Refusing(number, times=math.inf))
    with pytest.raises((EnvironmentFault, PermissionError)):
        tiny.train(*odd_settings(tiny))
    assert list_bindings(tiny.run().checkpoints) == {}
    assert not tiny.run().kernels.exists()


@pytest.mark.parametrize("problem", ["cache", "process"])
def test_a_run_whose_kernels_cannot_be_verified_goes_on(tiny, problem: str, monkeypatch, logged: list[str]) -> None:
    monkeypatch.setattr("aifx.kernels.verification.may_have_accelerator", lambda: True)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tiny.root / ("aifx.toml" if problem == "cache" else "cache")))
    if problem == "process":
        called = (current_device(), [ProjectCall(odd_op.QUICK, odd_op.Call(8), Choice("xla"), ("training",))], [])
        monkeypatch.setattr("aifx.kernels.verification.project_calls_isolated", lambda *_, **__: called)
        monkeypatch.setattr("jax_kernels.trials.START_S", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny.train("train.num_steps=2", "train.validate_every=0").status == "completed"
    (text,) = (text for text in logged if "verified" in text)
    assert ("no verdict" if problem == "cache" else "does not start") in text
    assert TuningCache(winners_path(), current_device()).document() == {"winners": {}, "failed": {}}


PROCESS = """
import json, os, sys
from pathlib import Path

import jax
import jax._src.xla_bridge

from aifx.kernels import verification as kernel_verification
from aifx.kinds import load_config
from aifx.core.errors import AifxError
from aifx.core.logs import log_lines
from aifx.core.project import Project

rank, port, root, cache = sys.argv[1:]
os.environ["AIFX_CACHE_DIR"] = cache
jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
project, logged, caught = Project(Path(root)), [], []
kernel_verification.may_have_accelerator = lambda: True
if rank == "1":
    kernel_verification.Apart = kernel_verification.project_calls_isolated = None
config = load_config(project, ["task.kind=tiny:OddTask"])
for attempt in range(2):
    if attempt == 1 and rank == "0":
        kernel_verification.make_private = None
    try:
        with log_lines(logged.append):
            kernel_verification.verify_kernels(project, config, project.run("main"))
    except (AifxError, TypeError) as error:
        caught.append(str(error))
print(json.dumps([logged, caught, jax._src.xla_bridge.backends_are_initialized()]))
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_process_0_verifies_and_the_others_take_its_verdict(tiny, tmp_path: Path) -> None:
    """No process opens the device before, and if process 0 fails, the others do not wait for it."""
    with (tiny.root / "tiny.py").open("a") as file:
        file.write(ODD_TASK)
    port = free_port("127.0.0.1")
    folders = [tmp_path / "cache 0", tmp_path / "cache 1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(port), str(tiny.root), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tiny.root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for rank, folder in enumerate(folders)
    ]
    (said_0, caught_0, opened_0), (said_1, caught_1, opened_1) = (
        json.loads(process.communicate(timeout=500)[0]) for process in processes
    )
    assert any("quick: off fails" in text for text in said_0)
    assert said_1 == []
    assert not opened_0
    assert not opened_1
    found = [TuningCache(folder / "kernels", current_device()).document() for folder in folders]
    assert found[0] == found[1]
    assert [choice["implementation"] for choice in found[1]["winners"].values()] == ["good"]
    assert [choice["implementation"] for choice in found[1]["failed"].values()] == ["off"]
    (own,), (others,) = caught_0, caught_1
    what, why, *_ = others.splitlines()
    assert "process 0" in what
    assert why == own
    assert "NoneType" in own


def test_nothing_is_tried_where_there_is_no_accelerator(monkeypatch) -> None:
    for platforms, may_have in (("cpu", False), ("cuda,cpu", True), ("tpu", True)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert may_have_accelerator() is may_have
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr("aifx.kernels.verification.entry_points", lambda group: ())
    monkeypatch.setattr("aifx.kernels.verification.find_spec", lambda name: None)
    assert not may_have_accelerator()
    monkeypatch.setattr("aifx.kernels.verification.find_spec", lambda name: name == "libtpu")
    assert may_have_accelerator()
