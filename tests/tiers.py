"""The tiers of the tests, their cost, and a journal of what passed.

| marker | run by |
| --- | --- |
| none | `make test`: uses less than a second of CPU time, or is the only test of its guarantee |
| `representative` | `.ci/run`: the test of a guarantee that costs more |
| `slow` | `make test-all`; of each commit, `.ci/run` runs a sixteenth of the files |
| `quarantined` | `make test-all`: failed once and passed again; docs/reliability.md lists it |

Of a test marked `covering(n)`, as many cases keep their tier as hold each combination of n parameters' values. The
others are slow. `covering(n, *names)` counts only the parameters of these names.

`--journal=FILE` writes a JSON line for each test that ended. With `--resume`, tests that passed on this commit and
Python with the same LONG are left out.

    python tests/tiers.py sixteenth       print the sixteenth of the slow tests that belongs to this commit, 0 to 15
    python tests/tiers.py costly FILE     list unmarked tests of a journal that use too much CPU time; exit 1 if any
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from effort import IS_LONG, ROOT, commit

MARKERS = ("quarantined", "representative", "slow")
QUICK_CPU_S = 15.0
"""An unmarked test that uses more fails `.ci/run`. Its own limit is a second; the rest is for other processors."""
SIXTEENTHS = 16
SLOW_TIMEOUT_S = 3600


def tier(item: pytest.Item) -> str:
    """The tier of a test. The marker of a case goes before that of its function, and that before its module's."""
    if item.get_closest_marker("quarantined"):
        return "quarantined"
    own = [mark.name for mark in item.own_markers if mark.name in MARKERS]  # of the function, then of the case
    return own[-1] if own else next((name for name in MARKERS if item.get_closest_marker(name)), "quick")


def sixteenth_of_commit() -> int:
    return 0 if commit() == "unknown" else int(commit().removesuffix("+"), 16) % SIXTEENTHS


def sixteenth_of_file(path: Path) -> int:
    return zlib.crc32(path.relative_to(ROOT).as_posix().encode()) % SIXTEENTHS


def cpu_s() -> float:
    """CPU time of this process, of its children that have ended, and of those forked by `warm`."""
    used = sum(os.times()[:4])
    # multiprocessing has no public name for the server's process id.
    if (server := forkserver._forkserver._forkserver_pid) is not None:  # type: ignore[attr-defined]
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
        used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime, stime, cutime, cstime: man 5 proc
    return used


class Journal:
    """A plugin that writes a line for each test that ended, from the process that starts the workers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._phases: dict[str, list[pytest.TestReport]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        phases = self._phases.setdefault(report.nodeid, [])
        phases.append(report)
        if report.when in ("setup", "call"):
            return  # "teardown" comes last; a worker that crashed reports neither
        del self._phases[report.nodeid]
        outcomes = {phase.outcome for phase in phases}
        properties = dict(report.user_properties)
        entry = {
            "test": report.nodeid,
            "commit": commit(),
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "outcome": next(outcome for outcome in ("failed", "skipped", "passed") if outcome in outcomes),
            "long": IS_LONG,
            "tier": properties.pop("tier", "unknown"),
            "cpu_s": properties.pop("cpu_s", 0.0),
            "wall_s": round(sum(phase.duration for phase in phases), 3),
            "properties": properties,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def passed_before(path: Path) -> set[str]:
    """Tests that passed on this commit and Python; none if files differ from the commit, or there is no commit."""
    here = (commit(), platform.python_version(), IS_LONG)
    if commit() == "unknown" or commit().endswith("+"):
        return set()
    entries = [entry for entry in read_journal(path) if (entry["commit"], entry["python"], entry["long"]) == here]
    return {entry["test"] for entry in entries if entry["outcome"] == "passed"}


def costly(entries: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each unmarked test that used more than QUICK_CPU_S, the costliest first."""
    found = [entry for entry in entries if entry["tier"] == "quick" and entry["cpu_s"] > QUICK_CPU_S]
    return [f"{entry['cpu_s']:.1f} s  {entry['test']}" for entry in sorted(found, key=lambda x: -x["cpu_s"])]


def covering(cases: Sequence[Mapping[str, int]], strength: int) -> set[int]:
    """A few cases that together hold each combination of values of `strength` parameters that any case holds.

    Greedy: the case that adds most comes next, the first of equals.

    Args:
        cases: a number for each parameter's value, by the parameter's name.
        strength: 1 for each value, 2 for each pair.
    """
    combinations = [set(itertools.combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    missing, chosen = set().union(*combinations), set[int]()
    while missing:
        best = max(range(len(cases)), key=lambda i: len(combinations[i] & missing))
        chosen.add(best)
        missing -= combinations[best]
    return chosen


def mark_what_is_covered(items: Sequence[pytest.Item]) -> None:
    """Mark the cases of `covering` tests that add no combination slow."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("covering"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        strength, *names = cases[0].get_closest_marker("covering").args  # type: ignore[union-attr]
        given: list[Mapping[str, Any]] = [case.callspec.params for case in cases]  # type: ignore[attr-defined]
        values = [{name: id(params[name]) for name in names or params} for params in given]
        chosen = covering(values, strength)
        for i, case in enumerate(cases):
            if i not in chosen:
                case.add_marker("slow")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption(
        "--sixteenth", type=int, metavar="N", help="of slow tests, only those in the Nth sixteenth of the files"
    )
    group.addoption("--journal", type=Path, metavar="FILE", help="add a JSON line for each test that ended to FILE")
    group.addoption("--resume", action="store_true", help="leave out tests that passed on this commit, by the journal")


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests whose compilers are missing, and what --sixteenth and --resume leave out."""
    mark_what_is_covered(items)
    for item in items:
        if tier(item) != "quick" and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    sixteenth = config.getoption("sixteenth")
    done = passed_before(config.getoption("journal")) if config.getoption("resume") else set()
    has_compilers = importlib.util.find_spec("libtpu") is not None

    def is_left_out(item: pytest.Item) -> bool:
        is_slow, is_quarantined = tier(item) == "slow", tier(item) == "quarantined"
        is_elsewhere = sixteenth is not None and (
            is_quarantined or (is_slow and sixteenth_of_file(item.path) != sixteenth)
        )
        needs_compilers = item.get_closest_marker("compilers") is not None
        return is_elsewhere or item.nodeid in done or (needs_compilers and not has_compilers)

    if left_out := [item for item in items if is_left_out(item)]:
        config.hook.pytest_deselected(items=left_out)
        dropped = set(left_out)
        items[:] = [item for item in items if item not in dropped]


class Costs:
    """A plugin that adds the CPU time of each test and its fixtures to the test's report."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        item.user_properties.append(("tier", tier(item)))
        item.user_properties.append(("cpu_s", -cpu_s()))
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            at = next(i for i, (name, _) in enumerate(item.user_properties) if name == "cpu_s")
            item.user_properties[at] = ("cpu_s", round(item.user_properties[at][1] + cpu_s(), 3))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["sixteenth"]:
            print(sixteenth_of_commit())
            return 0
        case ["costly", path]:
            entries = read_journal(Path(path))
            assert entries, f"{path} is empty: make test writes it"
            lines = costly(entries)
            if lines:
                print(f"{len(lines)} unmarked tests use more than {QUICK_CPU_S:g} s of CPU time. Mark them slow:")
                print("\n".join(lines))
            return 1 if lines else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
