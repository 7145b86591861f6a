"""The end of `aifx serve`: the real command and its signals, over an engine without a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from published_schemas import check_answer

WAIT_S = 120.0
"""Only ends a hang."""

PROGRAM = Path(__file__).with_name("serving_process.py")


class Process:
    def __init__(self, folder: Path, arguments: Sequence[str], step_s: float, drain_s: float) -> None:
        folder.mkdir()
        environ = {**os.environ, "AIFX_TEST_STEP_S": str(step_s), "AIFX_TEST_DRAIN_S": str(drain_s)}
        environ["PYTHONPATH"] = str(PROGRAM.parent)
        self.stderr = folder / "stderr"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), "serve", *arguments],
                cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self.text = ""

    def started(self) -> str:
        """The document that it prints when it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = json.loads(line)["url"]
        return line

    def ask(self, max_tokens: int) -> threading.Thread:
        """Begin a request; return when it runs."""
        started = threading.Event()

        def read() -> None:
            body = {"prompt": "abc", "max_tokens": max_tokens, "stream": True}
            url = f"{self.url}/v1/completions"
            with (
                suppress(httpx.HTTPError),
                httpx.stream("POST", url, json=body, timeout=WAIT_S, trust_env=False) as answer,
            ):
                for text in answer.iter_text():
                    started.set()
                    self.text += text

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(WAIT_S)
        return reader

    def ended(self) -> tuple[int, str, str]:
        """The exit code, the rest of stdout, and stderr."""
        rest, _ = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, rest, self.stderr.read_text()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[dict[str, Process]]:
    """They start together: each takes two seconds."""
    with ExitStack() as stack:
        made = {
            "finished": Process(tmp_path / "a", ["--json"], 0.01, 600),
            "cut": Process(tmp_path / "b", ["--json"], 0.1, 0.3),
            "twice": Process(tmp_path / "c", ["--json"], 0.1, 600),
            "interrupted": Process(tmp_path / "d", ["--json"], 0.01, 600),
        }
        for one in made.values():
            stack.callback(one.process.wait)
            stack.callback(one.process.kill)
        yield made


@pytest.mark.slow
def test_how_a_server_ends(processes: dict[str, Process]) -> None:
    for one in processes.values():
        check_answer(["serve", "--json"], one.started())
    readers = {name: one.ask(3000 if name in ("cut", "twice") else 60) for name, one in processes.items()}
    for name, one in processes.items():
        one.process.send_signal(signal.SIGINT if name == "interrupted" else signal.SIGTERM)
    end = time.monotonic() + WAIT_S
    while "finishing" not in processes["twice"].stderr.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    processes["twice"].process.send_signal(signal.SIGTERM)
    for reader in readers.values():
        reader.join(WAIT_S)

    code, rest, _ = processes["finished"].ended()
    assert (code, rest) == (0, "")
    assert processes["finished"].text.endswith("data: [DONE]\n\n")
    code, rest, stderr = processes["cut"].ended()
    assert (code, rest) == (75, "")
    assert "error: 1 request" in stderr
    assert "serve.drain_s = 0.3 s" in stderr
    assert '"stopping"' in processes["cut"].text
    code, rest, stderr = processes["twice"].ended()
    assert (code, rest) == (75, "")
    assert "stopped at once" in stderr
    code, rest, stderr = processes["interrupted"].ended()
    assert (code, rest) == (130, "")
    assert processes["interrupted"].text.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_a_second_signal_ends_a_server_whose_event_loop_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIFX_TEST_BUSY", "1")
    one = Process(tmp_path / "a", ["--json"], 0.1, 600)
    try:
        one.started()
        one.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + WAIT_S
        while not (tmp_path / "a" / "busy").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        one.process.send_signal(signal.SIGINT)
        assert one.ended()[0] == 130
    finally:
        one.process.kill()
