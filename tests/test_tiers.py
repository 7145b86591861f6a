"""The choice of tests by tier, and the journal."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiers
from effort import ROOT
from tiers import SIXTEENTHS, costly, covering, sixteenth_of_file

TESTS = """\
import time
import pytest

def test_quick(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.representative("a kill")
def test_representative(): pass

@pytest.mark.slow
@pytest.mark.quarantined
def test_quarantined(): assert 0

@pytest.mark.representative("a kill")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_case(n): pass

@pytest.mark.covering(1)
@pytest.mark.parametrize("x", "ab")
@pytest.mark.parametrize("y", "cd")
def test_covering(x, y): pass

@pytest.mark.covering(1, "y")
@pytest.mark.parametrize("x", "ab")
@pytest.mark.parametrize("y", "cd")
def test_named(x, y): pass

def test_busy():
    until = time.process_time() + 0.4
    while time.process_time() < until: pass
"""
QUICK = "not (representative or slow or quarantined)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository of its own with the configuration of these tests."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "tiers.py", "effort.py"):
        (tmp_path / "tests" / name).write_text((ROOT / "tests" / name).read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / ".gitignore").write_text("__pycache__\n.hypothesis\n.pytest_cache\nbuild\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "some tests")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=aifx", "-c", "user.email=aifx@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


def run(folder: Path, *arguments: str) -> list[dict[str, object]]:
    """The lines that pytest adds to the journal."""
    journal = folder / "build" / "journal.jsonl"
    before = len(journal.read_text().splitlines()) if journal.exists() else 0
    command = [sys.executable, "-m", "pytest", "-q", f"--journal={journal}", *arguments]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [json.loads(line) for line in journal.read_text().splitlines()[before:]] if journal.exists() else []


def names(entries: list[dict[str, object]]) -> set[str]:
    return {str(entry["test"]).partition("::test_")[2] for entry in entries}


@pytest.mark.representative("each test runs in its tier")
def test_a_marker_decides_who_runs_a_test(folder: Path) -> None:
    quick = run(folder, "-m", QUICK)
    assert names(quick) == {"quick", "busy", "covering[c-a]", "covering[d-b]", "named[c-a]", "named[d-a]"}
    assert all(entry["outcome"] == "passed" for entry in quick)
    assert next(entry["cpu_s"] for entry in quick if "busy" in str(entry["test"])) > 0.2  # type: ignore[operator]
    mine = sixteenth_of_file(ROOT / "tests" / "test_some.py")
    chosen = "representative or slow"
    slow = {"slow", "covering[c-b]", "covering[d-a]", "named[c-b]", "named[d-b]", "case[2]"}
    assert names(run(folder, "-m", chosen, f"--sixteenth={mine}")) == slow | {"representative", "case[1]"}
    assert names(run(folder, "-m", chosen, f"--sixteenth={(mine + 1) % SIXTEENTHS}")) == {"representative", "case[1]"}


@pytest.mark.slow
def test_a_run_goes_on_with_what_has_not_passed(folder: Path) -> None:
    everything = run(folder)
    assert len(everything) == 15
    assert names(run(folder, "--resume")) == {"quarantined"}
    (folder / "tests" / "test_some.py").write_text(TESTS + "\n")
    assert names(run(folder, "--resume")) == names(everything)
    git(folder, "commit", "-q", "-a", "-m", "another commit")
    assert names(run(folder, "--resume")) == names(everything)


def test_unmarked_tests_that_use_seconds_are_named() -> None:
    entries = [
        {"test": "t::fine", "tier": "quick", "cpu_s": 14.9},
        {"test": "t::costly", "tier": "quick", "cpu_s": 15.1},
        {"test": "t::costlier", "tier": "quick", "cpu_s": 50.0},
        {"test": "t::marked", "tier": "slow", "cpu_s": 50.0},
    ]
    assert [line.split()[-1] for line in costly(entries)] == ["t::costlier", "t::costly"]


def test_each_pair_of_values_is_covered() -> None:
    grid = [dict(zip("abc", values, strict=True)) for values in itertools.product(range(3), range(4), range(2))]
    for strength, least in ((1, 4), (2, 12)):
        chosen = covering(grid, strength)
        assert least <= len(chosen) < len(grid)
        held = {x for i in chosen for x in itertools.combinations(grid[i].items(), strength)}
        assert held == {x for case in grid for x in itertools.combinations(case.items(), strength)}


def test_an_sixteenth_belongs_to_a_commit_with_changes_and_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit, sixteenth in (("00000000000a", 10), ("00000000000f+", 15), ("unknown", 0)):
        monkeypatch.setattr(tiers, "commit", lambda commit=commit: commit)
        assert tiers.sixteenth_of_commit() == sixteenth


def test_each_sixteenth_has_files() -> None:
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.slow" in path.read_text()]
    assert {sixteenth_of_file(path) for path in files} == set(range(SIXTEENTHS))


def test_guarantees_and_quarantined_tests_are_documented() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page.partition("| guarantee | claim |")[2].partition("\n\n")[0]
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    sources.append(Path(__file__).read_text().partition("QUICK = ")[2])  # without those of TESTS
    found = {name for text in sources for name in re.findall(r'mark\.representative\("(.*?)"\)', text)}
    assert found == set(re.findall(r"^\| (.*?) \|", table.partition("---")[2], re.MULTILINE)) - {"---"}
    for text in sources[:-1]:
        for test in re.findall(r"mark\.quarantined\n(?:@.*\n)*def (\w+)", text):
            assert f"`{test}`" in page, test
