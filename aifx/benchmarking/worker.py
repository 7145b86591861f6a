"""One launch of one suite: `python -m aifx.benchmarking.worker REQUEST`, which writes events to stdout.

    {"fingerprint": {...}}  {"log": "..."}  {"note": "..."}  {"progress": {...}}  {"result": {...}}  {"failure": {...}}

REQUEST is JSON: suite, quick, options, only_fingerprint. Each launch is a process: launches differ, and a lost device
takes its process with it. The runner keeps what was written until then.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.logs import log_to
from aifx.core.processes import Child, connect
from aifx.core.progress import Progress, listen

Emit = Callable[[Mapping[str, Any]], None]


def main() -> None:
    emit = connect()
    try:
        run(json.loads(sys.argv[1]), emit)
    except AifxError as error:
        code = int(error.exit_code)
        emit({"failure": {"what": error.what, "why": error.why, "hint": error.hint, "exit_code": code}})
        raise SystemExit(code) from None


def run(request: dict[str, Any], emit: Emit) -> None:
    """Measure, and emit each result when it is complete."""
    from aifx.benchmarking.fingerprint import fingerprint
    from aifx.benchmarking.suites import SUITES, Bench
    from aifx.benchmarking.watch import watch_machine

    def report(progress: Progress | None) -> None:
        emit({"progress": progress and asdict(progress)})

    with log_to(EventHandler(emit), propagate=False), listen(report):
        suite = SUITES[request["suite"]]
        bench = Bench(suite, request["quick"], request["options"])
        folder = bench.project.root if suite.needs_project else Path.cwd()
        module = importlib.import_module(f"aifx.benchmarking.{suite.name}")  # first of all: a package may be missing
        only_fingerprint = request.get("only_fingerprint", False)
        if suite.leaves_devices and not only_fingerprint:
            _emit_fingerprint_of_another_process(request, emit)
        else:
            emit({"fingerprint": fingerprint(folder).model_dump(mode="json")})
        if only_fingerprint:
            return
        with watch_machine(watch_others=not suite.needs_target):
            for found in module.measure(bench):
                emit({"result": found.model_dump(mode="json")})


class EventHandler(logging.Handler):
    """Emits each message: a warning as a note of the report, and only once."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit
        self._notes = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            self._emit({"log": text})
        elif text not in self._notes:
            self._notes.add(text)
            self._emit({"note": text})


def _emit_fingerprint_of_another_process(request: dict[str, Any], emit: Emit) -> None:
    """The process is gone afterwards, with the devices that it opened."""
    with Child.of_module("aifx.benchmarking.worker", json.dumps({**request, "only_fingerprint": True})) as child:
        for event in child.events():
            emit(event)
    if not child.wait().succeeded:
        raise EnvironmentFault("the devices cannot be listed", child.wait().why, "aifx doctor")


if __name__ == "__main__":
    main()
