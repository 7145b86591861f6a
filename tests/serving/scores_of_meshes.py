"""python scores_of_meshes.py PROJECT: what meshes of four devices serve of run "main", as JSON."""

import json
import os
import queue
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"

from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.loading.restore import restore_run
from aifx.serving.requests import Delta, GenerationRequest, SamplingSettings
from aifx.serving.start import start_engine

MESHES = (["train.devices=1"], ["mesh.tensor=2", "train.devices=2"], ["mesh.fsdp=2", "mesh.tensor=2"])
PROMPT = "12 whales, said Ishmael. " * 4


def served(project: Project, mesh: list[str]) -> dict:
    run = restore_run(project.run("main"), project, step=3, overrides=[*mesh, "serve.slots=[4]"])
    engine = start_engine(run, run.config.serve)
    answers = [ask(engine, seed) for seed in range(5)]  # more than slots, so that one waits
    found = {"answers": [whole(answer) for answer in answers], "compilations": engine.stats().compilations}
    engine.stop()
    return found | {"is_reproducible": engine.is_reproducible}


def ask(engine, seed: int) -> queue.Queue:
    deltas: queue.Queue[Delta] = queue.Queue()
    prompt = engine.tokenizer.encode_prompt(PROMPT)
    settings = SamplingSettings(seed=seed)
    engine.submit(
        GenerationRequest(prompt, 12, settings, ignore_end=True, logprobs=0, prompt_logprobs=True), deltas.put
    )
    return deltas


def whole(deltas: queue.Queue) -> list:
    scores = []
    while True:
        delta = deltas.get()
        scores += [(score.token, score.logprob) for score in (*delta.prompt_scores, *delta.scores)]
        if delta.finish_reason is not None:
            return scores


def refusal(project: Project, *overrides: str) -> str:
    try:
        run = restore_run(project.run("main"), project, step=3, overrides=[*overrides])
        start_engine(run, run.config.serve)
    except UsageError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    project = Project(Path(sys.argv[1]))
    odd = refusal(project, "mesh.tensor=2", "train.devices=2", "serve.slots=[3]")
    sys.stdout.write(json.dumps({"served": [served(project, mesh) for mesh in MESHES], "odd": odd}))
