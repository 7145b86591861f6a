"""A line whose own process, or whose stations' processes, are killed: each effect happens once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import killed_line
import pytest
import warm_aifx
from effort import IS_LONG, seed_of_commit
from faulty_files import killed
from ticking import Ticking, station

from aifx.lines import running

HERE = Path(__file__).parent


def kill_each(folder: Path, kind: str, every: int) -> int:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [
        sys.executable,
        str(HERE / "killed_line.py"),
        kind,
        str(folder),
        str(seed_of_commit() % every),
        str(every),
    ]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


@pytest.mark.representative("a killed line")
def test_a_kill_at_each_change_starts_no_station_twice(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    kills = kill_each(tmp_path, "programs", 1 if IS_LONG else 12)
    record_property("kills of a line", kills)
    assert kills >= 7


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("kind", "every"), [("programs", 1), ("effects", 12)])
def test_a_kill_at_each_change_of_lines(
    tmp_path: Path, kind: str, every: int, record_property: Callable[[str, object], None]
) -> None:
    kills = kill_each(tmp_path, kind, 1 if IS_LONG else every)
    record_property("kills of a line", kills)
    assert kills >= (80 if kind == "programs" else 10)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kills_at_random_of_lines_and_of_their_stations(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    program = [sys.executable, str(HERE / "randomly_killed_line.py"), str(tmp_path), str(seed := seed_of_commit())]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    most, limit_s = (250, 3600) if IS_LONG else (25, 600)
    done = subprocess.run([*program, str(most), str(limit_s)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-4000:]}"
    kills, lines = map(int, done.stdout.split())
    record_property("kills of a line at random", kills)
    assert kills >= 2 * lines > 0


def test_a_record_is_flushed_before_its_process_starts(tmp_path: Path) -> None:
    """A kill leaves what was written and not flushed, and a loss of power does not."""
    ticking, starts = Ticking(tmp_path), 0
    ticking.write(station("a") + station("b", after=["a"]))

    def start(*args: object, **kwargs: object) -> running.Apart:
        nonlocal starts
        starts += 1
        assert len(ticking.records("started")) == starts
        unflushed = set[str]()
        for call, _, path in (made.partition(" ") for made in calls.made):
            unflushed = unflushed | {path} if call == "write" else unflushed - {path} if call == "fsync" else unflushed
        assert {Path(path).name for path in unflushed} <= set(running.RESERVED_BYTES)  # room for what the shell writes
        return real(*args, **kwargs)  # type: ignore[arg-type]

    real = running.start_apart
    with killed(tmp_path / "line") as calls, mock.patch.object(running, "start_apart", start):
        assert ticking.tick() == {"a": "done", "b": "done"}
    assert starts == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stations_that_are_killed_after_their_effects_have_them_once(tmp_path: Path) -> None:
    """Each command is killed with its shell before its exit code is written, and new rows have arrived by then."""
    script = """"$@"; code=$?; name=$(echo "$AIFX_REQUEST" | tr -d /)
    [ -e "$name.once" ] && exit $code; touch "$name.once"; cp late.jsonl raw/b.jsonl; kill -9 0"""
    found = {}
    with warm_aifx.serving(tmp_path) as words:
        for kind, aifx in (("calm", words), ("killed", ["sh", "-c", script, "sh", *words])):
            killed_line.prepare(tmp_path / kind, killed_line.EFFECTS)
            (tmp_path / kind / "late.jsonl").write_text('{"text": "late"}\n')
            with mock.patch("aifx.lines.runner.AIFX", tuple(aifx)):
                assert set(Ticking(tmp_path / kind).tick().values()) == {"done"}
            found[kind] = killed_line.said(tmp_path / kind)
    repeated = [one for one in found["killed"].pop("journal") if one[1] == "repeated"]
    assert {one[0] for one in repeated} == {"add", "train", "push", "promote"}
    del found["calm"]["journal"]
    assert found["killed"] == found["calm"]
