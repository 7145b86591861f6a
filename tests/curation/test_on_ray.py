"""Steps by Ray: the bytes are those of one process, and a failure is the failure of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inprocess
import psutil
import pytest
from held_port import held_port
from prose import prose
from toy_steps import HeldWithoutLetter, KillsItself, NeedsFile, Rows, WithoutLetter

from aifx.core.errors import AifxError, EnvironmentFault
from aifx.curation import on_ray
from aifx.curation.execution import execute
from aifx.curation.on_ray import OnRay
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import LINEAGE, Version

TEXTS = tuple((f"a cat {n}", f"a dog {n}") for n in range(6))
LIMITS = Limits(4 << 30, 2)
HELD = """
import time
from aifx.commands.main import main
from aifx.curation import on_ray

def held(*task):
    time.sleep(3600)

on_ray._run = held
main()
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, which every step of the tests below uses."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # of Ray's processes, which read the steps of the tests
    with on_ray.session("local", LIMITS) as started:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        yield started


def collected(root: Path) -> Version:
    return execute(Rows((), TEXTS), "pets", open_catalog(str(root)), LIMITS).version


def content(folder: Path) -> dict[str, bytes]:
    """The files of all versions below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and LINEAGE not in path.parts
    }


def name_of(process: psutil.Process) -> str:
    """Its name; "" if it ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.representative("a Ray step")
def test_commands(ray: Any, tmp_path: Path) -> None:
    """Each step makes the bytes that it makes in processes of this machine."""
    for number in range(2):
        lines = [json.dumps({"text": prose(200, number * 10 + row) + " me@example.org"}) for row in range(6)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    (tmp_path / "test.txt").write_text(prose(200, 11))
    steps = (
        *(["add", "corpus", f"{number}.jsonl", "--license", "MIT"] for number in range(2)),
        ["clean", "corpus", "--rules", "none"],
        ["dedupe", "corpus"],
        ["decontaminate", "corpus", "--against", "test.txt", "--drop"],
        ["pii", "corpus", "--mask"],
    )
    for on in ("local", "ray"):
        for step in steps:
            done = inprocess.run(["data", *step, "--on", on, "--root", on, "--workers", "2"], tmp_path, os.environ)
            assert done.returncode == 0, done.stderr
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    manifest = open_catalog(str(tmp_path / "ray")).open("corpus").manifest
    assert len(manifest.shards) == 2
    assert 0 < manifest.rows <= 12


@pytest.mark.slow
def test_what_a_task_raises(ray: Any, tmp_path: Path) -> None:
    """It is the same error, and the command does what is missing after the cause is gone."""
    catalog, needed = open_catalog(str(tmp_path)), tmp_path / "needed"
    step = NeedsFile((collected(tmp_path),), "d", needed)
    found = []
    for run_tasks in (None, OnRay()):
        with pytest.raises(AifxError, match=r"no file .*needed") as caught:
            execute(step, "pets", catalog, LIMITS, run_tasks)
        found.append((type(caught.value), caught.value.document()))
    assert found[0] == found[1]
    needed.touch()
    assert execute(step, "pets", catalog, LIMITS, OnRay()).version.manifest.rows == 6


@pytest.mark.slow
def test_a_killed_process_is_started_again(ray: Any, tmp_path: Path) -> None:
    is_free = tmp_path / "free"
    step = HeldWithoutLetter((collected(tmp_path / "ray"),), "d", is_free)
    killed: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                if name_of(process).startswith("ray::_run"):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    is_free.touch()
                    return

    monitor = threading.Thread(target=kill)
    monitor.start()
    try:
        execute(step, "pets", open_catalog(str(tmp_path / "ray")), LIMITS, OnRay())
    finally:
        is_over.set()
        monitor.join()
    assert killed
    execute(WithoutLetter((collected(tmp_path / "local"),), "d"), "pets", open_catalog(str(tmp_path / "local")), LIMITS)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


@pytest.mark.slow
def test_a_task_that_always_ends_its_process(ray: Any, tmp_path: Path) -> None:
    step = KillsItself((collected(tmp_path),), "d")
    with pytest.raises(EnvironmentFault, match=r"00002-000.parquet: .* 4 times"):
        execute(step, "pets", open_catalog(str(tmp_path)), LIMITS, OnRay())


@pytest.mark.slow
def test_too_little_memory_is_an_error(ray: Any, tmp_path: Path) -> None:
    """Ray would wait forever for a node that is large enough."""
    step = WithoutLetter((collected(tmp_path),), "d")
    with pytest.raises(EnvironmentFault, match="no node of Ray"):
        execute(step, "pets", open_catalog(str(tmp_path)), Limits(8 << 30, 1), OnRay())


@pytest.mark.slow
def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the command with 130; no process, folder or token of Ray stays, and none was open to the network."""
    lines = [json.dumps({"text": prose(200, row)}) for row in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    added = ["data", "add", "corpus", "rows.jsonl", "--root", ".", "--license", "MIT"]
    assert inprocess.run(added, tmp_path, os.environ).returncode == 0
    home, temporary = tmp_path / "home", Path("/tmp") / f"ray-{os.getpid()}"  # short, as Ray's sockets need it
    home.mkdir()
    temporary.mkdir()
    environ = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary)}
    command = [sys.executable, "-P", "-c", HELD]
    command += ["data", "clean", "corpus", "--on", "ray", "--root", ".", "--memory", "512MB"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started: list[psutil.Process] = []
    while not any(name_of(child).startswith("ray::held") for child in started):
        assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    listening: set[str] = set()
    for child in [psutil.Process(process.pid), *started]:
        with suppress(psutil.NoSuchProcess):
            found = [one.laddr.ip for one in child.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            listening.update(ip.removeprefix("::ffff:") for ip in found)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.decode().splitlines()[-1]) == (130, b"", "error: interrupted")
    assert listening <= {"127.0.0.1", "::1"}
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert [*home.iterdir(), *temporary.iterdir()] == []
    temporary.rmdir()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ray-address", "auto"], "--ray-address can only be used with --on ray"),
        (["--on", "ray", "--jobs", "2"], "--jobs can only be used with --on slurm"),
        (["--on", "ray", "--ray-address", "auto", "--root", "memory://x"], "--on ray needs a root on a shared disk"),
    ],
)
def test_usage(tmp_path: Path, options: list[str], words: str) -> None:
    done = inprocess.run(["data", "clean", "corpus", "--root", ".", *options], tmp_path, os.environ)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where no cluster is fails within seconds, and a package that is missing is named."""
    step, catalog = WithoutLetter((collected(tmp_path),), "d"), open_catalog(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ray", None)
        with pytest.raises(EnvironmentFault, match="--on ray needs Ray") as caught:
            execute(step, "pets", catalog, LIMITS, OnRay())
        assert caught.value.hint == "pip install 'ray[data]>=2.50'"
    with held_port() as port, pytest.raises(EnvironmentFault, match=f"127.0.0.1:{port}"):
        on_ray._connect(None, f"127.0.0.1:{port}", None, LIMITS)


def test_processes_of_ray_get_no_password_of_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def stopped() -> Any:
        seen.append(dict(os.environ))
        raise KeyboardInterrupt

    monkeypatch.setenv("AIFX_DATABASE_PASSWORD", "s3cr3t-Pa55")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=stopped))
    with pytest.raises(KeyboardInterrupt), on_ray.session("local", LIMITS):
        pass
    assert seen[0]["RAY_AUTH_MODE"] == "token"
    assert "s3cr3t-Pa55" not in seen[0].values()
    assert os.environ["AIFX_DATABASE_PASSWORD"] == "s3cr3t-Pa55"
