"""A suite whose `measure` is the test's, in real processes: those of launches, or forked ones, which start sooner."""

import os
import subprocess
import textwrap
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import warm

from aifx.benchmarking import runner
from aifx.machine.huge_pages import with_huge_pages

SITE = """
import os, sys, types

if "FAKE_SUITE" in os.environ:
    module = sys.modules["aifx.benchmarking.hardware"] = types.ModuleType("aifx.benchmarking.hardware")
    exec(open(os.environ["FAKE_SUITE"]).read(), module.__dict__)
"""


HEAD = """
import os, signal, time


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
stdin, writer, said = passed
for number, connection in enumerate((stdin, said, said)):
    os.dup2(connection.fileno(), number)
sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
sys.argv = ["worker", request, str(os.dup(writer.fileno()))]
writer.close()
{SITE}
from aifx.benchmarking import worker

worker.main()
"""
"""What a forked launch does, as source: the folder of this module is not where the server's processes look."""


def environ(folder: Path, body: str) -> dict[str, str]:
    """Variables with which the worker finds `measure(bench)` of this body in the place of `hardware`."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    suite = folder / "suite.py"
    suite.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))
    return {"PYTHONPATH": str(folder / "site"), "FAKE_SUITE": str(suite)}


class ForkedLaunch:
    """A launch that is forked from the server of tests/warm.py, which saves a second; as `subprocess.Popen`."""

    def __init__(self, request: str, writer: int, said: int) -> None:
        reader, ours = os.pipe()
        self.stdin = os.fdopen(ours, "wb")
        passed = [Connection(fd) for fd in (reader, os.dup(writer), os.dup(said))]
        found = {"request": request, "environ": dict(with_huge_pages(os.environ)), "passed": passed}
        self._process = warm.server.Process(target=exec, args=(FORKED, found))
        self._process.start()
        for connection in passed:
            connection.close()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("launch", timeout_s or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def fork_launches(patch: pytest.MonkeyPatch) -> None:
    """Fork the launches of benches that run in this process.

    To be called before the variables of `environ` are set, which the server would otherwise begin with.
    """
    warm.server.set_forkserver_preload(warm.IMPORTS)
    forkserver.ensure_running()
    patch.setattr(runner, "_start", lambda request, writer, said: ForkedLaunch(request, writer, said.fileno()))
