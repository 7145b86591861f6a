"""Steps as array jobs of a real Slurm of two nodes: the bytes are those of one process."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import inprocess
import psutil
import pytest
from prose import prose
from slurm_cluster import Cluster, cluster, missing
from toy_steps import HeldWithoutLetter, NeedsFile, Rows, WithoutLetter

from aifx.config.launch_section import LaunchSection, SlurmSection
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.curation.execution import execute
from aifx.curation.on_slurm import OnSlurm, run_share
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

TEXTS = tuple((f"a cat {n}", f"a dog {n}") for n in range(6))
LIMITS = Limits(1 << 30, 1)

needs_slurm = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def on_slurm(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnSlurm:
    monkeypatch.setenv("SLURM_CONF", str(slurm.folder / "slurm.conf"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # of the job, which reads the steps of the tests
    return OnSlurm(LaunchSection(), SlurmSection(), tmp_path, 2)


def collected(root: Path) -> Version:
    return execute(Rows((), TEXTS), "pets", open_catalog(str(root)), LIMITS).version


def content(version: Version) -> dict[str, bytes]:
    files = [path for path in sorted(version.path.rglob("*")) if path.is_file()]
    return {str(path.relative_to(version.path)): path.read_bytes() for path in files}


@pytest.mark.representative("a data step on Slurm")
@needs_slurm
def test_two_nodes_make_the_bytes_of_one_process(on_slurm: OnSlurm, tmp_path: Path) -> None:
    alone = execute(WithoutLetter((collected(tmp_path / "a"),), "d"), "pets", open_catalog(str(tmp_path / "a")), LIMITS)
    step = WithoutLetter((collected(tmp_path / "b"),), "d")
    both = execute(step, "pets", open_catalog(str(tmp_path / "b")), LIMITS, on_slurm)
    assert content(both.version) == content(alone.version)
    assert both.version.manifest.rows == 6


@needs_slurm
@pytest.mark.slow
def test_killed_elements_are_done_again(on_slurm: OnSlurm, tmp_path: Path) -> None:
    """By the next call, which does what is missing."""
    catalog = open_catalog(str(tmp_path / "b"))
    is_free = tmp_path / "free"
    step = HeldWithoutLetter((collected(tmp_path / "b"),), "d", is_free, free=2)

    def kill() -> None:
        while len(list((tmp_path / "b" / "pets").glob(".work-*/done/*"))) < 2:
            time.sleep(0.05)
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "run-tasks" in command and command[-1].startswith(str(tmp_path)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)

    monitor = threading.Thread(target=kill, daemon=True)
    monitor.start()
    with pytest.raises(EnvironmentFault, match="ended without"):
        execute(step, "pets", catalog, LIMITS, on_slurm)
    monitor.join()
    is_free.touch()
    work = next((tmp_path / "b" / "pets").glob(".work-*"))
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("done/*")}
    assert 2 <= len(before) < 6
    again = execute(step, "pets", catalog, LIMITS, on_slurm)
    alone = execute(WithoutLetter((collected(tmp_path / "a"),), "d"), "pets", open_catalog(str(tmp_path / "a")), LIMITS)
    assert content(again.version) == content(alone.version)


@needs_slurm
@pytest.mark.slow
def test_what_a_task_raises_ends_the_job(on_slurm: OnSlurm, slurm: Cluster, tmp_path: Path) -> None:
    step = NeedsFile((collected(tmp_path / "b"),), "d", tmp_path / "needed")
    with pytest.raises(AifxError, match=r"no file .*needed"):
        execute(step, "pets", open_catalog(str(tmp_path / "b")), LIMITS, on_slurm)
    slurm.wait("the end of all jobs", lambda: not slurm.ask("squeue", "-h"))


@needs_slurm
@pytest.mark.slow
def test_commands(on_slurm: OnSlurm, tmp_path: Path) -> None:
    """The rows that `aifx data` makes on Slurm are those that it makes here."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "aifx.toml").write_text("[launch]\ndoctor = false\n")
    for number in range(4):
        lines = [json.dumps({"text": prose(200, number * 10 + row)}) for row in range(10)]
        (project / f"{number}.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    found = {}
    for on in ("local", "slurm"):
        there = ["--on", on, *(["--jobs", "2"] if on == "slurm" else []), "--root", str(tmp_path / on), "--json"]
        documents = []
        for step in (["add", "corpus", ".", "--license", "MIT"], ["dedupe", "corpus"]):
            done = inprocess.run(["data", *step, *there], project, dict(os.environ))
            assert done.returncode == 0, done.stderr
            documents.append(json.loads(done.stdout))
        found[on] = documents
    assert found["slurm"] == found["local"]
    assert found["slurm"][1]["dropped_by"] == {"exact": 4}


def test_the_script(tmp_path: Path) -> None:
    on_slurm = OnSlurm(LaunchSection(), SlurmSection(account="lab", options=("mem=4G",)), tmp_path)
    script = on_slurm.script("dedupe", tmp_path / "a b", 3)
    assert "#SBATCH --array=0-2\n" in script
    assert "#SBATCH --account=lab\n" in script
    assert f"data run-tasks '{tmp_path}/a b'" in script


def test_a_step_that_another_user_may_have_written_is_not_read(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.pickle"
    tasks.write_bytes(pickle.dumps(None))
    os.chmod(tasks, 0o666)
    with pytest.raises(EnvironmentFault, match="cannot be trusted"):
        run_share(tmp_path, 0, 1)
