"""Attempts as processes: their ends, adoption by another process, time limits, and their environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_files import failing

from aifx.core.errors import ConfigError
from aifx.lines.running import Exit, Try, environment_of

ENVIRON = {"PATH": os.environ["PATH"]}


def try_in(folder: Path, number: int = 1) -> Try:
    return Try(folder / "line" / "attempts", "train-1", number)


def wait(one: Try, limit_s: float = 20) -> Exit:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        found = one.look()
        if isinstance(found, Exit):
            return found
        time.sleep(0.01)
    raise AssertionError("it did not end")


@pytest.mark.parametrize(
    ("commands", "command", "code"),
    [
        ([["true"], ["echo", "a  b'c"]], 2, 0),
        ([["sh", "-c", "exit 7"], ["touch", "never"]], 1, 7),
        ([["true"], ["no-such-program"]], 2, 127),
        ([["sh", "-c", "kill -9 $$"]], 1, 137),
    ],
)
def test_an_exit_code_is_written_with_its_command(
    tmp_path: Path, commands: list[list[str]], command: int, code: int
) -> None:
    one = try_in(tmp_path)
    process = one.start(commands, ENVIRON, tmp_path)
    assert process is not None
    process.wait()
    assert one.look() == Exit(command, code)
    with failing(tmp_path) as calls:
        one.look()
    for at in range(len(calls.made)):
        with failing(tmp_path, at), pytest.raises(OSError, match="Input/output error"):
            one.look()  # it is not taken for a try that never began, which would begin again
    assert not (tmp_path / "never").exists()
    assert one.output(2) == (b"a  b'c\n" if code == 0 else b"")


def test_a_try_that_runs_is_found_and_not_started_twice(tmp_path: Path) -> None:
    one = try_in(tmp_path)
    assert one.look() is False
    words = ["sh", "-c", "echo effect >>effects; while [ ! -e go ]; do sleep 0.02; done"]
    starter = "import sys; from pathlib import Path; from test_attempts import *; "
    starter += "assert try_in(Path(sys.argv[1])).start([sys.argv[2:]], ENVIRON, Path(sys.argv[1]))"
    here = Path(__file__).parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    subprocess.run([sys.executable, "-c", starter, str(tmp_path), *words], env=environ, check=True)
    assert one.look() is True  # though the process that started it is gone
    assert one.start([words], ENVIRON, tmp_path) is None
    (tmp_path / "go").touch()
    assert wait(one) == Exit(1, 0)
    assert (tmp_path / "effects").read_text() == "effect\n"


def test_a_killed_try_is_lost(tmp_path: Path) -> None:
    one = try_in(tmp_path)
    process = one.start([["sleep", "60"]], ENVIRON, tmp_path)
    assert process is not None
    while one.age_s() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = wait(one)
    assert found.was_lost
    assert found.code == 137


def test_a_stopped_command_says_how_it_ended_and_why(tmp_path: Path) -> None:
    one = try_in(tmp_path)
    words = ["sh", "-c", "trap 'exit 75' TERM; touch ready; while :; do sleep 0.02; done"]
    assert one.start([words], ENVIRON, tmp_path) is not None
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    age = one.age_s()
    assert age is not None
    assert 0 <= age < 20
    one.stop("it ran for more than 1 s")
    assert wait(one) == Exit(1, 75, "it ran for more than 1 s")
    one.stop("again")  # its process is gone
    assert one.look() == Exit(1, 75, "it ran for more than 1 s")


def test_another_process_with_the_same_id_is_left_alone(tmp_path: Path) -> None:
    one = try_in(tmp_path)
    one.path.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        stat = Path(f"/proc/{other.pid}/stat").read_text().split()
        stat[21] = str(int(stat[21]) - 1)
        (one.path / "process").write_text(" ".join(stat))
        one.stop("time limit")
        time.sleep(0.1)
        assert other.poll() is None
        other.kill()


def test_the_environment_is_a_fixed_list_and_what_a_station_names(tmp_path: Path) -> None:
    (tmp_path / "secrets.env").write_text("# of the database\nexport PGPASSWORD='swordfish'\n")
    given = {"PATH": "/bin", "SECRET": "x" * 9, "AIFX_API_KEY": "y", "AIFX_LOG": "z", "MINE": "mine"}
    environ, secrets = environment_of(["MINE", "file:secrets.env"], tmp_path, given, AIFX_REQUEST="r")
    assert environ == {
        "PATH": "/bin", "AIFX_LOG": "z", "MINE": "mine", "PGPASSWORD": "swordfish", "AIFX_REQUEST": "r"
    }  # fmt: skip
    assert set(secrets) == {"mine", "swordfish"}
    with pytest.raises(ConfigError, match="PGUSER is not set"):
        environment_of(["PGUSER"], tmp_path, given)
    (tmp_path / "secrets.env").write_text("\nswordfish\n")
    with pytest.raises(ConfigError, match=r"secrets\.env:2 sets no variable") as raised:
        environment_of(["file:secrets.env"], tmp_path, given)
    assert "swordfish" not in str(raised.value)
