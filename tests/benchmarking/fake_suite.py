"""A suite whose `measure` is the test's, in real processes: those of launches, or forked ones, which start sooner."""

import os
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm

from aifx.benchmarking import runner
from aifx.core import processes
from aifx.core.processes import Child

SITE = """
import os, sys, types

if "FAKE_SUITE" in os.environ:
    module = sys.modules["aifx.benchmarking.hardware"] = types.ModuleType("aifx.benchmarking.hardware")
    exec(open(os.environ["FAKE_SUITE"]).read(), module.__dict__)
"""


HEAD = """
import logging, os, signal, time

logger = logging.getLogger("aifx.benchmarking.hardware")


def result(name, *seconds, **params):
    from aifx.benchmarking.results import Measured

    return Measured(name=f"hardware.{name}", samples_s=list(seconds), params=params, flops=1e9)


def measure(bench):
"""


FORKED = f"""
import os, sys

os.setsid()
os.environ.clear()
os.environ.update(environ)
for number, connection in enumerate(passed):
    os.dup2(connection.fileno(), number)
    connection.close()
sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
sys.argv = ["worker", request]
{SITE}
from aifx.benchmarking import worker

worker.main()
"""
"""Source of a forked launch: the folder of this module is not where the server's processes look."""


def environ(folder: Path, body: str) -> dict[str, str]:
    """Variables with which the worker finds `measure(bench)` of this body in the place of `hardware`."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    suite = folder / "suite.py"
    suite.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))
    return {"PYTHONPATH": str(folder / "site"), "FAKE_SUITE": str(suite)}


class ForkedLaunch:
    """A launch that is forked from the server of tests/warm.py, which saves a second; as `subprocess.Popen`."""

    def __init__(self, request: str, env: Mapping[str, str]) -> None:
        (stdin, ours), (out, stdout), (error, stderr) = (os.pipe() for _ in range(3))
        self.stdin, self.stdout, self.stderr = os.fdopen(ours, "wb"), os.fdopen(out, "rb"), os.fdopen(error, "rb")
        passed = [Connection(fd) for fd in (stdin, stdout, stderr)]
        found = {"request": request, "environ": dict(env), "passed": passed}
        self._process = warm.server.Process(target=exec, args=(FORKED, found))
        self._process.start()
        for connection in passed:
            connection.close()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode


def fork_launches(patch: pytest.MonkeyPatch) -> list[Child]:
    """Fork the launches of benches that run in this process. Returns those that have been started.

    To be called before the variables of `environ` are set, which the server would otherwise begin with.
    """
    started: list[Child] = []

    class RecordedChild(Child):
        def __init__(self, argv: Sequence[str], **options: Any) -> None:
            super().__init__(argv, **options)
            started.append(self)

    def start(argv: Sequence[str], *, env: Mapping[str, str], **options: Any) -> Any:
        if "aifx.benchmarking.worker" in argv:
            return ForkedLaunch(argv[-1], env)
        return subprocess.Popen(argv, env=env, **options)

    warm.server.set_forkserver_preload(warm.IMPORTS)
    forkserver.ensure_running()
    patch.setattr(runner, "Child", RecordedChild)
    patch.setattr(processes, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
    return started
