"""Acts of the registry that are killed at each change of the disk, and at each request to a store."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from killed_acts import ACTS, WITHOUT_ENTRY, check_whole, fill, live, said
from s3_server import Application, s3_server

from aifx.core.stores import open_store
from aifx.registry.roots import Root

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])


FLUSHED = ("push_run", "push_again", "promote", "attest_file", "copy", "pull")
"""Acts that between them flush all that the registry flushes."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("act", "options"),
    [
        pytest.param("promote", "", marks=pytest.mark.representative("a killed act of the registry")),
        pytest.param("push_run", "--power --every 6", marks=pytest.mark.representative("a push that loses its power")),
        *(pytest.param(act, "", marks=pytest.mark.slow) for act in ACTS if act not in ("promote", "push_large")),
        *(pytest.param(act, "--power", marks=pytest.mark.slow) for act in FLUSHED),
    ],
)
def test_a_kill_at_each_change(
    tmp_path: Path, act: str, options: str, record_property: Callable[[str, object], None]
) -> None:
    (tmp_path / "root").mkdir()
    environ = {**os.environ, "PYTHONPATH": PATHS, "AIFX_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(HERE / "killed_acts.py"), act, str(tmp_path / "root"), *options.split()]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    fault = "losses of power in" if "--power" in options else "kills of"
    record_property(f"{fault} an act of the registry", int(done.stdout))
    assert int(done.stdout) >= (0 if act == "push_again" else 5)


class Killer:
    """Kills a process before or after the request with a number that changes the store."""

    def __init__(self) -> None:
        self.process: BaseProcess | None = None
        self.at, self.changes, self.is_after = -1, 0, False
        self._lock = threading.Lock()  # parts of a file arrive together

    def wrapped(self, moto: Application) -> Application:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            is_change = self.process is not None and environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
            with self._lock:
                is_turn = is_change and self.changes == self.at
                self.changes += is_change
            if is_turn and not self.is_after:
                self.kill()
                return refused(start)
            body = list(moto(environ, start))
            if is_turn:
                self.kill()
            return body

        return answer

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        connection.wait([self.process.sentinel])


def refused(start: Callable[..., Any]) -> list[bytes]:
    start("503 Service Unavailable", [])
    return [b""]


def do(act: str, url: str, environ: Mapping[str, str]) -> None:
    """Do an act at a root, in a process of its own."""
    os.environ.update(environ)
    ACTS[act](Root(open_store(url)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("act", [act for act in ACTS if act not in (*WITHOUT_ENTRY, "push_run")])
def test_a_kill_at_each_request_to_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, record_property: Callable[[str, object], None]
) -> None:
    killer, kills = Killer(), 0
    processes = multiprocessing.get_context("forkserver")  # each would import aifx again
    processes.set_forkserver_preload([__name__])
    with s3_server(monkeypatch, killer.wrapped) as files:
        environ = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environ["AIFX_CACHE_DIR"] = str(tmp_path / "cache")

        def run(url: str) -> None:
            killer.process = process = processes.Process(target=do, args=(act, url, environ))
            process.start()
            process.join()
            assert process.exitcode in (0, -9)
            killer.process = None

        fill(Root(open_store("s3://bucket/filled")), act)
        filled = files.find("bucket/filled")

        def filled_root(name: str) -> Root:
            for file in filled:
                files.copy(file, file.replace("filled", name, 1))
            return Root(open_store(f"s3://bucket/{name}"))

        calm = filled_root("calm")
        killer.at = -1
        run(calm.store.url)
        for is_after in (False, True):
            for at in itertools.count():
                root = filled_root(f"{is_after}-{at}")
                killer.at, killer.changes, killer.is_after = at, 0, is_after
                run(root.store.url)
                if killer.changes <= at:
                    break
                kills += 1
                killer.at = -1
                assert live(root) in (None if act == "init" else "v2", live(calm))
                run(root.store.url)
                assert said(root) == said(calm)
                check_whole(root)
    record_property("kills of an act of the registry on S3", kills)
    assert kills >= 2
