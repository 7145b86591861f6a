"""A line that is killed at random moments, alone or with all its stations, and run again until it ends.

    python randomly_killed_line.py FOLDER SEED LINES SECONDS

Each of the lines has three ticks, of which the second and the third find another file. Each ends as an undisturbed
one: no attempt, effect or record is more or less. None begins after SECONDS. The program prints the number of kills
and that of lines.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
from faulty_files import forked
from ticking import Ticking, station

from aifx.core.files import FolderBusy
from aifx.lines.journal import Journal
from aifx.verbs.line_decisions import line_approve

WORK = """
echo "$AIFX_REQUEST" >>starts
sleep "$2"
[ -e "made/$AIFX_REQUEST" ] || { echo "$1" >"made/.$AIFX_REQUEST"; mv "made/.$AIFX_REQUEST" "made/$AIFX_REQUEST"; }
echo "{\\"value\\": \\"$1\\"}"
if [ "$3" = 75 ] && [ ! -e "busy/$AIFX_REQUEST" ]; then touch "busy/$AIFX_REQUEST"; exit 75; fi
[ "$3" = 75 ] || exit "$3"
"""
TICKS = 3
MOST_KILLS = 4
"""In a tick: a station that is killed more often than five times has failed."""


def line_of(tick: int) -> str:
    """Stations that are done, busy at first, bad, failed and approved, of which some have new work in each tick."""
    return "[line]\njobs = 3\n" + "".join(
        [
            station("first", f"sh work first-{tick} 0.01 0"),
            station("busy", "sh work busy 0.02 75", after=["first"]),
            station("after", "sh work {stations.first.value} 0 0"),
            station("judge", f"sh work judge-{tick} 0.01 {tick % 2}", after=["busy"]),
            station("promote", "sh work promote 0.01 0", after=["judge"]),
            station("mend", "sh work mend 0 0", when="verdict:judge"),
            station("fails", f"sh work fails-{tick} 0.02 2"),
            station("asks", f"sh work asks-{tick} 0.01 0", ask="approval"),
            station("last", "sh work last 0 0", after=["after", "asks"]),
        ]
    )


def run(root: Path) -> None:
    """Two ticks, with an approval between them."""
    ticking = Ticking(root)
    while True:
        try:
            if ticking.tick()["asks"] == "waiting":
                line_approve("asks", project=root)
                ticking.tick()
            return
        except FolderBusy:  # what a killed line was about to start has its lock for a moment
            time.sleep(0.01)


def processes_below(root: Path) -> list[psutil.Process]:
    found = list[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(root):
                found.append(process)
    return found


def _exit_after(function: Callable[[], None]) -> NoReturn:
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed_after(root: Path, pause_s: float, with_stations: bool, function: Callable[[], None]) -> bool:
    """Run a tick in a process group of its own, and kill that. Returns False if it ended before."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _exit_after(function)
    with suppress(PermissionError, ProcessLookupError):  # so that there is a group now
        os.setpgid(pid, pid)
    time.sleep(pause_s)
    os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    while with_stations and (found := processes_below(root)):  # also those that one has started meanwhile
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def prepare(root: Path) -> None:
    for name in ("made", "busy"):
        (root / name).mkdir(parents=True)
    (root / "work").write_text(WORK)


def said(root: Path, exact: bool) -> dict[str, Any]:
    """What there is after a line. `exact`: no station was killed, so that each was begun as often as it says."""
    records = [one for one in Journal(root / "line").records() if exact or one.kind != "repeated"]
    facts = ("number", "state", "outcome", "code", "identity", "outputs", *(["tries"] if exact else []))
    starts = (root / "starts").read_text().split()
    attempts = {one.attempt for one in records if one.attempt}
    assert attempts == {path.name for path in (root / "line" / "attempts").iterdir()} == set(starts)
    assert attempts == {path.name for path in (root / "made").iterdir()}
    return {
        "records": Counter(
            json.dumps([one.kind, one.station, one.key, [one.facts.get(name) for name in facts]], sort_keys=True)
            for one in records
            if one.station
        ),
        "ticks": Counter(bool(one.facts.get("is_over")) for one in records if one.kind == "tick"),
        "effects": Counter(path.read_text() for path in (root / "made").iterdir()),
        "starts": len(starts) if exact else len(set(starts)),
    }


def main() -> None:
    folder, dice, lines, limit_s = Path(sys.argv[1]), random.Random(int(sys.argv[2])), *map(int, sys.argv[3:])
    calm, kills, duration_s = folder / "calm", 0, 0.0
    prepare(calm)
    for tick in range(1, TICKS + 1):
        Ticking(calm).write(line_of(tick))
        began = time.monotonic()
        assert forked(lambda: run(calm)) == 0
        duration_s = max(duration_s, time.monotonic() - began)
    root, until = folder / "root", time.monotonic() + limit_s
    for number in range(lines):
        if time.monotonic() > until:
            lines = number
            break
        exact = number % 2 == 0
        prepare(root)
        for tick in range(1, TICKS + 1):
            Ticking(root).write(line_of(tick))
            for _ in range(MOST_KILLS):
                if not killed_after(root, dice.uniform(0, 0.6 * duration_s), not exact, partial(run, root)):
                    break
                kills += 1
            assert forked(partial(run, root)) == 0, f"line {number}"
        found, expected = said(root, exact), said(calm, exact)
        assert found == expected, f"line {number}:\n{found}\n{expected}"
        root.rename(folder / f"line-{number}")
    sys.stdout.write(f"{kills} {lines}")


if __name__ == "__main__":
    main()
