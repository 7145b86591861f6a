"""SIGTERM while a model writes answers that do not fit into `serve.drain_s`, and a second signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from aifx.core.project import Project

BODY = {"prompt": "12 whales, said ", "max_tokens": 32_000, "ignore_eos": True, "stream": True}


class Server:
    """`aifx serve` in a process of its own, and its clients."""

    def __init__(self, project: Project, stderr: Path, drain_s: float) -> None:
        self.stderr = stderr
        settings = ("model.max_seq_len=32768", f"serve.drain_s={drain_s}")
        options = [part for setting in settings for part in ("--set", setting)]
        with stderr.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aifx.commands.main", "serve", "--port", "0", "--json", *options],
                cwd=project.root, env=os.environ, stdout=subprocess.PIPE, stderr=stream, text=True,
            )  # fmt: skip
        self.answers = ["", "", ""]
        self.readers: list[threading.Thread] = []

    def ask(self) -> None:
        """Begin three answers; return when they run."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.stderr.read_text()
        url = json.loads(line)["url"] + "/v1/completions"

        def read(number: int) -> None:
            with (
                suppress(httpx.HTTPError),
                httpx.stream("POST", url, json=BODY, timeout=120, trust_env=False) as answer,
            ):
                for text in answer.iter_text():
                    self.answers[number] += text

        self.readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
        for reader in self.readers:
            reader.start()
        self.wait(lambda: all(answer.count("data: ") > 5 for answer in self.answers))

    def wait(self, condition: object) -> None:
        until = time.monotonic() + 120
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < until, self.stderr.read_text()
            time.sleep(0.01)

    def ended(self) -> tuple[int, str]:
        """The exit code and stderr."""
        rest, _ = self.process.communicate(timeout=120)
        assert rest == ""
        for reader in self.readers:
            reader.join(120)
        return self.process.returncode, self.stderr.read_text()


@pytest.fixture
def servers(project: Project, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        made = Server(project, tmp_path / "cut", 0.2), Server(project, tmp_path / "twice", 600)
        for server in made:
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
        yield made


@pytest.mark.slow
def test_answers_that_do_not_end_in_time_are_cut(servers: tuple[Server, Server]) -> None:
    cut, twice = servers
    for server in servers:
        server.ask()
        server.process.send_signal(signal.SIGTERM)
    twice.wait(lambda: "finishing 3 requests" in twice.stderr.read_text())
    twice.process.send_signal(signal.SIGTERM)
    code, stderr = cut.ended()
    assert code == 75, stderr
    assert "error: 3 requests" in stderr
    assert "aifx serve --set serve.drain_s=SECONDS" in stderr
    for answer in cut.answers:
        assert '"stopping"' in answer
        assert "[DONE]" not in answer
    code, stderr = twice.ended()
    assert code == 75, stderr
    assert "a second signal" in stderr
