"""A training whose disk fails at one call, or for a while, ends as documented; the next one goes on bit for bit.

Each open, write, fsync, rename and mkdir below the project's folder can fail, whether Python makes it or TensorStore
in C++ does: failing_calls.c stands before the C library. `.ci/run` tries 20 of them, with a seed that follows the
commit; with LONG=1, every call of a run fails with each error.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from effort import parts, seed_of_commit
from real_command import TINY, Command, settings

from aifx.core.json_files import read_jsonl

HERE = Path(__file__).parent
TRAIN = ["train", "--json", *settings([*TINY, "train.num_steps=10", "checkpoint.disk_timeout_s=2"])]
ERRORS = (errno.EIO, errno.ENOSPC, errno.ESTALE)
WHILES = (1, 1, 3, 40)
"""Numbers of calls that fail in a row."""

FEW = 20
PARTS = 60
NEVER = -1


class Server:
    """Starts processes whose calls fail."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        library = folder / "failing_calls.so"
        source = HERE / "failing_calls.c"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environ = {**os.environ, "LD_PRELOAD": str(library)}
        self._process = subprocess.Popen(
            [sys.executable, HERE / "failing_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def close(self) -> None:
        self._process.communicate()

    def train(self, project: Command, first: int = NEVER, count: int = 0, number: int = 0) -> Ended:
        """`aifx train` of which the calls from `first` on fail, `count` of them."""
        streams = [self._folder / name for name in ("stdin", "stdout", "stderr")]
        told, made = self._folder / "told", self._folder / "made"
        for path in (*streams, told, made):
            path.unlink(missing_ok=True)
        for path in streams:
            path.touch()
        asked = {
            "args": TRAIN,
            "cwd": str(project.cwd),
            "environ": project.environ,
            "streams": [str(path) for path in streams],
            "fail": [str(project.cwd), first, first + count, number, str(told)],
            "count": str(made),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        _, out, err = (path.read_text() for path in streams)
        failed = told.read_text() if told.exists() else ""
        return Ended(code, out, err, failed, int(made.read_text()) if made.exists() else 0)


@dataclass(frozen=True)
class Ended:
    """The result of a training: `failed` is the first call that failed, `made` the number of calls."""

    code: int
    out: str
    err: str
    failed: str
    made: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    server = Server(tmp_path_factory.mktemp("failing"))
    yield server
    server.close()


@dataclass(frozen=True)
class Undisturbed:
    project: Command
    digest: str
    calls: int


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Undisturbed:
    """A project that was trained once, so that what lies in its caches is there, without its run."""
    aifx = Command(tmp_path_factory.mktemp("whole"), cache)
    assert aifx("init", "project", "--template", "language-model", "--yes").returncode == 0
    project = Command(aifx.cwd / "project", cache)
    whole = server.train(project)
    assert whole.code == 0, whole.err
    shutil.rmtree(project.cwd / "runs")
    again = server.train(project)
    assert again.made > 50
    shutil.rmtree(project.cwd / "runs")
    return Undisturbed(project, json.loads(whole.out)["state_digest"], again.made)


def acknowledged(project: Command) -> int:
    """The newest step of which the ledger says that it was saved."""
    events = project.cwd / "runs" / "main" / "events.jsonl"
    told = read_jsonl(events) if events.exists() else []
    return max((event["step"] for event in told if event["event"] == "checkpoint"), default=0)


def check(server: Server, whole: Undisturbed, folder: Path, first: int, count: int, number: int) -> tuple[str, int]:
    """One fault and the recovery from it. Returns the call that failed, and how the training ended."""
    project = Command(Path(shutil.copytree(whole.project.cwd, folder / "project")), whole.project.cache)
    ended = server.train(project, first, count, number)
    case = f"call {first} and {count - 1} more, {errno.errorcode[number]}: {ended.failed}\n{ended.err}"
    assert ended.code in (0, 2, 75), f"{ended.code}: {case}"
    assert "Traceback" not in ended.err, case
    document: dict[str, Any] = json.loads(ended.out)
    if ended.code == 0:
        assert document["state_digest"] == whole.digest, case
    elif ended.code == 2:
        assert document["error"]["hint"], case
    saved = acknowledged(project)
    again = server.train(project)
    assert again.code == 0, f"{again.err}\nafter {case}"
    document = json.loads(again.out)
    assert document["state_digest"] == whole.digest, case
    assert saved == 10 or (document["resumed_from"] or 0) >= saved, f"step {saved} was lost: {case}"
    shutil.rmtree(project.cwd)
    return ended.failed.partition(" ")[0], ended.code


@pytest.mark.representative("a failing call")
@pytest.mark.timeout(3600)
def test_some_calls_fail(server: Server, undisturbed: Undisturbed, tmp_path: Path) -> None:
    dice = random.Random(seed_of_commit())
    for _ in range(FEW):
        first = dice.randrange(undisturbed.calls)
        check(server, undisturbed, tmp_path, first, dice.choice(WHILES), dice.choice(ERRORS))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
@pytest.mark.parametrize("part", parts(PARTS))
def test_every_call_fails(
    server: Server,
    undisturbed: Undisturbed,
    tmp_path: Path,
    part: int,
    number: int,
    record_property: Callable[[str, object], None],
) -> None:
    turns = range(part, undisturbed.calls, PARTS)
    for turn in turns:
        check(server, undisturbed, tmp_path, turn, 1, number)
    record_property("failed calls", len(turns))
