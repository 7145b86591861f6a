"""Writers of artefacts that are killed, or whose disk fails.

Each time there is no artefact or a whole one, and asking again makes a whole one.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import parts, seed_of_commit
from faulty_files import failing
from killed_artifact import PLACE, WRITERS, content, is_whole, prepare

from aifx.core.artifact import sweep
from aifx.core.errors import AifxError
from aifx.core.files import REMOVED, is_temporary

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
IN_ONE_PROCESS = [writer for writer in WRITERS if "several" not in writer and writer != "after_a_kill"]


def run(program: str, *arguments: object, cache: Path) -> int:
    """Run a program beside this file. Returns the number of kills that it prints."""
    environ = {**os.environ, "PYTHONPATH": PATHS, "AIFX_CACHE_DIR": str(cache)}
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "writer",
    [
        pytest.param("one", marks=pytest.mark.representative("a killed writer of an artefact")),
        *(pytest.param(writer, marks=pytest.mark.slow) for writer in WRITERS if writer != "one"),
    ],
)
def test_a_kill_at_each_change(tmp_path: Path, writer: str, record_property: Callable[[str, object], None]) -> None:
    (tmp_path / "root").mkdir()
    kills = run("killed_artifact.py", writer, tmp_path / "root", cache=tmp_path / "cache")
    record_property("kills of a writer of an artefact", kills)
    assert kills > 15


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", parts(20))
def test_caches_that_several_processes_make_and_damage(
    tmp_path: Path, part: int, record_property: Callable[[str, object], None]
) -> None:
    kills = run("racing_caches.py", tmp_path, seed_of_commit() + part, 200, cache=tmp_path / "cache")
    record_property("kills of makers of a cache", kills)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("writer", IN_ONE_PROCESS)
def test_a_fault_of_each_call(tmp_path: Path, writer: str, number: int) -> None:
    write, base, calm, root = WRITERS[writer], *(tmp_path / name for name in ("base", "calm", "root"))
    prepare(writer, base)
    shutil.copytree(base, calm)
    write(calm)
    faults = 0
    for at in itertools.count():
        shutil.copytree(base, root)
        try:
            with failing(root, at, number=number) as calls:
                write(root)
        except (OSError, AifxError) as fault:
            named = fault.what if isinstance(fault, AifxError) else str(fault.filename)
            assert str(root) in named, calls.failed
            faults += 1
        if calls.failed is None:
            break
        is_whole(writer, root / PLACE)
        parent = (root / PLACE).parent
        assert not parent.exists() or all(name == "it" or name.startswith(REMOVED) for name in os.listdir(parent))
        write(root)
        sweep(parent)
        assert os.listdir(parent) == ["it"]
        assert is_whole("", root / PLACE)
        # `failing` lets this process keep the lock of a temporary file that could not be opened.
        found = {name: data for name, data in content(root).items() if not is_temporary(Path(name).name)}
        assert found == content(calm), calls.failed
        shutil.rmtree(root)
    assert faults > 10
