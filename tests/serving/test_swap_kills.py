"""SIGKILL around a swap: never an answer from mixed weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from aifx.core.project import Project
from aifx.loading.restore import restore_run
from aifx.serving.start import start_engine

SEEDS, TOKENS = range(3), 60
BODY = {"prompt": "12 whales, said ", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 1, "stream": True}


def expected_texts(project: Project) -> dict[tuple[str, int], str]:
    """What the weights of each step write, by fingerprint and seed."""
    import queue

    from aifx.serving.requests import Delta, GenerationRequest, SamplingSettings

    found = {}
    for step in (1, 2):
        run = restore_run(project.run("main"), project, step=step)
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
        with suppress(httpx.HTTPError), httpx.Client(timeout=30, trust_env=False) as client:
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


@pytest.mark.parametrize("kills", [pytest.param(10, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.long)])
def test_no_answer_is_of_mixed_weights(
    kills: int, trained: Project, project: Project, arrive: Callable[..., None], tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(trained.root, both)
    expected = expected_texts(Project(both))
    rng, seen = random.Random(0), set()
    for _ in range(kills):
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
            readers = [Reader(json.loads(line)["url"], seed) for seed in SEEDS]
            for reader in readers:
                reader.start()
            arrive(2)
            threading.Event().wait(rng.uniform(0.0, 1.5))
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
        for reader in readers:
            reader.join()
            for fingerprint, text in reader.answers:
                assert expected[fingerprint, reader.seed].startswith(text)
                seen.add(fingerprint)
    assert len(seen) == 2, "no kill came after a swap, or none before"
