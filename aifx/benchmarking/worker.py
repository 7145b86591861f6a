"""One launch of one suite: `python -m aifx.benchmarking.worker REQUEST FD`, which writes events as lines of JSON to FD.

    {"fingerprint": {...}}  {"say": "..."}  {"note": "..."}  {"alive": true}  {"result": {...}}  {"failure": {...}}

REQUEST is JSON: suite, quick, options. A process of its own, since launches differ and since a device that is lost
takes the process with it; what was told until then is kept.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from aifx.core.errors import AifxError, ExitCode

GRACE_S = 5.0
"""For a launch that is ended before its time, to remove what it wrote."""

R = TypeVar("R")

_left_alone = threading.Event()


def main() -> None:
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow, daemon=True, name="follow").start()
    request, channel = json.loads(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w", encoding="utf-8", buffering=1)

    def tell(**event: Any) -> None:
        channel.write(json.dumps(event) + "\n")

    try:
        run(request, tell)
    except AifxError as error:
        code = int(error.exit_code)
        tell(failure={"what": error.what, "why": error.why, "hint": error.hint, "exit_code": code})
        raise SystemExit(code) from None
    finally:
        if _left_alone.is_set():
            os.killpg(0, signal.SIGKILL)


def run(request: dict[str, Any], tell: Any) -> None:
    """Measure, telling all that is found as it is found."""
    from aifx.benchmarking.fingerprint import fingerprint
    from aifx.benchmarking.suites import SUITES, Bench, measure_of
    from aifx.benchmarking.watch import Watch

    suite, noted = SUITES[request["suite"]], set[str]()

    def note(text: str) -> None:
        if text not in noted:
            noted.add(text)
            tell(note=text)

    bench = Bench(
        suite,
        request["quick"],
        request["options"],
        say=lambda text: tell(say=text),
        note=note,
        alive=lambda: tell(alive=True),
    )
    folder = bench.project.root if suite.needs_project else Path.cwd()
    measure = measure_of(suite)  # a package that is missing is told before anything is measured
    print_ = _elsewhere(fingerprint, folder) if suite.leaves_devices else fingerprint(folder)
    tell(fingerprint=print_.model_dump(mode="json"))
    with Watch(note):
        for found in measure(bench):
            tell(result=found.model_dump(mode="json"))


def _elsewhere(function: Callable[[Path], R], folder: Path) -> R:
    """In a process that is gone afterwards, with the devices that it opened."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, folder).result()


def _leave(*_: object) -> None:
    """Ended before its time: what was written to temporary folders goes on the way out."""
    raise SystemExit(int(ExitCode.PREEMPTED))


def _follow() -> None:
    """End with the bench that holds the other end of stdin, however that ended, and what was started here too."""
    os.read(0, 1)  # not through sys.stdin, whose lock a thread must not hold when Python ends
    _left_alone.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
