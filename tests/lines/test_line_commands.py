"""`aifx line` in a terminal and with --json."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import inprocess
import pytest
from ticking import Ticking, station


class Terminal(Ticking):
    """A project with a line, and its commands."""

    def aifx(self, *words: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        found = inprocess.run(["line", *words], self.root, {**os.environ, **environ})
        assert found.returncode == code, found.stdout + found.stderr
        return found

    def document(self, *words: str, code: int = 0, **environ: str) -> dict[str, Any]:
        doc: dict[str, Any] = json.loads(self.aifx(*words, "--json", code=code, **environ).stdout)
        return doc

    def states(self, *words: str, code: int = 0) -> dict[str, str]:
        return {one["station"]: one["state"] for one in self.document(*words, code=code)["stations"]}


@pytest.fixture
def line(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def test_a_tick_answers_with_the_state_of_each_station(line: Terminal) -> None:
    line.write(station("a") + station("b", "sh -c 'exit 3'") + station("c", after=["b"]))
    found = line.aifx("run", "--allow-shell", code=2)
    assert [row.split()[:2] for row in found.stdout.splitlines()[1:4]] == [
        ["a", "done"], ["b", "failed"], ["c", "blocked"]
    ]  # fmt: skip
    assert "aifx line retry b" in found.stdout
    assert "a: started" in found.stderr
    assert line.states("run", "--allow-shell", code=2) == {"a": "done", "b": "failed", "c": "blocked"}
    assert line.count("a") == 1


def test_a_bad_verdict_exits_1(line: Terminal) -> None:
    line.write(station("gate", "sh -c 'echo \"$0\"; exit 1' '{{\"passed\": false}}'"))
    assert line.states("run", "--allow-shell", code=1) == {"gate": "verdict"}


def test_a_program_needs_the_permission_of_the_person(line: Terminal) -> None:
    line.write(station("a"))
    (found,) = line.document("run")["stations"]
    assert (found["state"], found["hint"]) == ("blocked", "aifx line run --allow-shell")
    assert line.count("a") == 0


def test_a_dry_run_says_what_would_start_and_writes_nothing(line: Terminal) -> None:
    line.write(station("a", "echo --api-key swordfish") + station("b", after=["a"]))
    first, second = line.document("run", "--dry-run", "--allow-shell")["stations"]
    assert (first["state"], first["why"], second["state"]) == ("ready", "new", "pending")
    assert first["commands"][0][0] == "echo"
    assert not (line.root / "line").exists()
    assert "would start: echo" in line.aifx("run", "--dry-run", "--allow-shell").stdout


def test_select_runs_a_station_and_what_follows_it(line: Terminal) -> None:
    line.write(station("a") + station("b", after=["a"]) + station("c"))
    line.aifx("run", "--allow-shell")
    line.write(station("a", "sh -c true") + station("b", "sh -c true", after=["a"]) + station("c", "sh -c true"))
    assert line.states("run", "--allow-shell", "--select", "b+") == {"a": "left out", "b": "done", "c": "left out"}
    found = line.aifx("run", "--select", "bb", code=2)
    assert "no station 'bb'" in found.stderr
    assert "did you mean 'b'?" in found.stderr


def test_the_status_starts_nothing_and_says_what_each_station_waits_for(line: Terminal) -> None:
    line.write(
        '[line]\nevery = "1h"\n' + station("a") + station("b", "sh -c 'exit 3'", after=["a"])
        + station("c", ask="approval", environment=["MISSING"]) + station("d", environment=["MISSING"])
        + station("e", when="every:7d and failed:a")
    )  # fmt: skip
    assert line.states("status") == {"a": "ready", "b": "pending", "c": "waiting", "d": "ready", "e": "skipped"}
    assert not (line.root / "line").exists()
    line.aifx("run", "--allow-shell", code=2)
    size = len(line.records())
    found = line.document("status")
    a, b, c, d, e = found["stations"]
    assert [one["state"] for one in (a, b, c, d, e)] == ["done", "failed", "waiting", "failed", "skipped"]
    assert (a["verdict"], b["verdict"], c["verdict"]) == ("done", "failed", "")
    assert a["since"] <= found["next"] <= e["next"]
    assert a["attempt"] == line.records("ended", "a")[0].attempt
    assert c["hint"] == "aifx line approve c"
    assert "MISSING is not set" in d["what"]
    assert (len(line.records()), line.count("a")) == (size, 1)
    assert "next tick: " in line.aifx("status").stdout


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_missing_or_wrong_file_is_named(line: Terminal, command: str) -> None:
    error = line.document(command, code=2)["error"]
    assert "line.toml cannot be read" in error["what"]
    assert "--file" in error["hint"]
    line.write(station("a") + station("a"))
    assert f"{line.root}/line.toml:5: two stations 'a'" in line.document(command, code=2)["error"]["what"]
    (line.root / "other.toml").write_text(station("b"))
    assert "b" in line.aifx(command, "--file", "other.toml").stdout
