"""SIGKILL around a swap: never an answer from mixed weights."""

from __future__ import annotations

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from effort import parts

from aifx.core.project import Project
from aifx.loading.restore import restore_run
from aifx.serving.requests import Delta, GenerationRequest, SamplingSettings
from aifx.serving.start import start_engine

SEEDS, TOKENS = range(3), 60
BODY = {"prompt": "12 whales, said ", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 1, "stream": True}


@pytest.fixture(scope="session")
def expected(trained: Project) -> dict[tuple[str, int], str]:
    """The answers of the weights of each step, by fingerprint and seed."""
    found = {}
    for step in (1, 2):
        run = restore_run(trained.run("main"), trained, step=step)
        engine = start_engine(run, run.config.serve)
        for seed in SEEDS:
            deltas: queue.Queue[Delta] = queue.Queue()
            prompt = engine.tokenizer.encode_prompt(str(BODY["prompt"]))
            sampling = SamplingSettings(seed=seed)
            engine.submit(GenerationRequest(prompt, TOKENS, sampling, ignore_end=True), deltas.put)
            texts = [deltas.get(timeout=60)]
            while texts[-1].finish_reason is None:
                texts.append(deltas.get(timeout=60))
            found[engine.fingerprint, seed] = "".join(delta.text for delta in texts)
        engine.stop()
    return found


class Reader(threading.Thread):
    """Asks again and again until the server is gone. Keeps what came of each answer."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__()
        self.url, self.seed = url, seed
        self.answers: list[tuple[str, str]] = []

    def run(self) -> None:
        with suppress(httpx.HTTPError), httpx.Client(timeout=120, trust_env=False) as client:
            while True:
                self.ask(client)

    def ask(self, client: httpx.Client) -> None:
        text, fingerprints = "", set()
        try:
            with client.stream("POST", f"{self.url}/v1/completions", json={**BODY, "seed": self.seed}) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line.removeprefix("data: "))
                        fingerprints.add(chunk["system_fingerprint"])
                        text += "".join(choice["text"] for choice in chunk["choices"])
        finally:
            assert len(fingerprints) <= 1
            if fingerprints:
                self.answers.append((fingerprints.pop(), text))


def wait_for_answer(reader: Reader, *, other_than: str = "") -> None:
    """Wait for an answer of weights that do not have this fingerprint."""
    until = time.monotonic() + 120
    while all(fingerprint == other_than for fingerprint, _ in reader.answers):
        assert time.monotonic() < until
        time.sleep(0.01)


KILLS = 10
"""In a part of the test, each with other moments."""


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(50))
def test_no_answer_is_of_mixed_weights(
    part: int,
    trained: Project,
    project: Project,
    arrive: Callable[..., None],
    expected: dict[tuple[str, int], str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rng, answers = random.Random(part), Counter[str]()
    for kill in range(KILLS):
        shutil.rmtree(project.root / "runs/main/checkpoints/2", ignore_errors=True)
        with (tmp_path / "stderr").open("w") as stderr:
            server = subprocess.Popen(
                [sys.executable, "-m", "aifx.commands.main", "serve", "--port", "0", "--json", "--watch"],
                cwd=project.root, env=os.environ, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line, (tmp_path / "stderr").read_text()
            listening = json.loads(line)
            readers = [Reader(listening["url"], seed) for seed in SEEDS]
            for reader in readers:
                reader.start()
            old = listening["system_fingerprint"]
            if kill == 0:
                wait_for_answer(readers[0])
            arrive(2)
            if kill == 0:
                wait_for_answer(readers[0], other_than=old)
            time.sleep(rng.uniform(0.0, 1.5))
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
        for reader in readers:
            reader.join()
            for fingerprint, text in reader.answers:
                assert expected[fingerprint, reader.seed].startswith(text)
                answers["of old weights" if fingerprint == old else "of new weights"] += 1
    assert len(answers) == 2
    record_property("kills around a swap", KILLS)
