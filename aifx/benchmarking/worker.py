"""One launch of one suite: `python -m aifx.benchmarking.worker REQUEST`, which writes events to stdout.

    {"fingerprint": {...}}  {"say": "..."}  {"note": "..."}  {"alive": true}  {"result": {...}}  {"failure": {...}}

REQUEST is JSON: suite, quick, options, only_fingerprint. Each launch is a process: launches differ, and a lost device
takes its process with it. The runner keeps what was written until then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.logs import log_lines
from aifx.core.processes import Child, connect


def main() -> None:
    emit = connect()

    def tell(**event: Any) -> None:
        emit(event)

    try:
        run(json.loads(sys.argv[1]), tell)
    except AifxError as error:
        code = int(error.exit_code)
        tell(failure={"what": error.what, "why": error.why, "hint": error.hint, "exit_code": code})
        raise SystemExit(code) from None


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
    only_fingerprint = request.get("only_fingerprint", False)
    if suite.leaves_devices and not only_fingerprint:
        _tell_fingerprint_of_another_process(request, tell)
    else:
        tell(fingerprint=fingerprint(folder).model_dump(mode="json"))
    if only_fingerprint:
        return
    with Watch(note), log_lines(bench.say, propagate=False):
        for found in measure(bench):
            tell(result=found.model_dump(mode="json"))


def _tell_fingerprint_of_another_process(request: dict[str, Any], tell: Any) -> None:
    """The process is gone afterwards, with the devices that it opened."""
    request = {**request, "only_fingerprint": True}
    with Child.of_module("aifx.benchmarking.worker", json.dumps(request)) as child:
        for event in child.events():
            tell(**event)
    if not child.wait().succeeded:
        raise EnvironmentFault("the devices cannot be listed", child.wait().why, "aifx doctor")


if __name__ == "__main__":
    main()
