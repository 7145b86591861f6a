"""The canary: checks of new weights before they answer anyone (parity with training, pinned prompts, gates)."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.core.errors import DataError, UsageError
from aifx.core.processes import Child, aifx_command
from aifx.data.readers.rows import read_rows
from aifx.data.readers.sources import local_file
from aifx.loading.restore import RestoredRun
from aifx.serving.engine import Engine
from aifx.serving.requests import (
    Delta,
    Draining,
    GenerationRequest,
    SamplingSettings,
    TokenScore,
    complete_answer,
)
from aifx.serving.rows import Weights

PARITY = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.01}
"""Most difference in log-probability between serving and the training forward, by what the model computes in."""

WORSE = 0.5
"""Most nats per token by which a pinned answer may become less likely than under the weights that serve."""

PARITY_PROMPTS = 4
"""Prompts of the canary file that parity is measured on: each length compiles the training forward once."""

MOST_TOKENS = 256
"""Tokens of an answer that must contain a text."""

GATES_S = 3600.0
"""Time limit of `aifx eval`."""


@dataclass(frozen=True)
class Prompt:
    """A line of the canary file.

    Attributes:
        place: file and line.
        answer: pinned; it may not become much less likely.
        contains: what the likeliest answer must contain.
    """

    place: str
    prompt: str
    answer: str = ""
    contains: str = ""


@dataclass(frozen=True)
class Check:
    """One condition, and what was found."""

    name: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found}"


def read_canary(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl file: objects with "prompt", and "answer", "contains" or both. Raises DataError."""
    prompts = []
    for row in read_rows(local_file(path, format="jsonl")):
        values = {key: row.values.get(key, "") for key in ("prompt", "answer", "contains")}
        if unknown := sorted(set(row.values) - set(values)):
            raise DataError(
                f"{row.place}: unknown field {unknown[0]!r}", "a prompt, an answer, contains", "docs/serve.md"
            )
        if not all(isinstance(value, str) for value in values.values()) or not values["prompt"]:
            raise DataError(f"{row.place}: no prompt", 'it is {"prompt": TEXT, "answer": TEXT}', "docs/serve.md")
        prompts.append(Prompt(row.place, **values))
    if not prompts:
        raise DataError(f"{path} has no prompt", "it is empty", "docs/serve.md")
    return prompts


class Canary:
    """Judges weights by an engine that serves with others at the same time."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], computes_in: str) -> None:
        """
        Args:
            computes_in: a key of PARITY.
        """
        self._engine, self._prompts, self._bound = engine, prompts, PARITY[computes_in]
        model = engine.device.programs.model
        context = engine.device.programs.decoding.context

        @jax.jit
        def forward(params: Any, tokens: jax.Array) -> jax.Array:
            head: Any = model.head(params, context)
            return jax.nn.log_softmax(head(model.hidden(params, {"inputs": tokens}, context)))

        self._forward = forward

    def checks(self, trained: RestoredRun, weights: Weights, old: Weights) -> Iterator[Check]:
        """The checks, in the order of their price; the caller stops at the first that fails."""
        yield self._parity(weights)
        yield from self._pinned(weights, old)
        if trained.config.eval.gates:
            yield check_gates(trained)

    def _parity(self, weights: Weights) -> Check:
        worst = 0.0
        for prompt in self._prompts[:PARITY_PROMPTS]:
            ids = self._ids(prompt.prompt + prompt.answer)
            scores = self._scores(ids, weights)
            expected = np.asarray(self._forward(weights.params, np.array([ids], np.int32)))
            own = expected[np.arange(len(ids) - 1), ids[1:]]
            found = np.array([score.logprob for score in scores[1:]], np.float32)
            worst = max(worst, float(np.max(np.abs(found - own), initial=0.0)))
            if not np.isfinite(found).all():
                worst = float("inf")
        return Check("parity with training", worst <= self._bound, f"{worst:.2g} nats of at most {self._bound:g}")

    def _pinned(self, weights: Weights, old: Weights) -> Iterator[Check]:
        for prompt in self._prompts:
            if prompt.answer:
                before, after = (self._nats(prompt, w) for w in (old, weights))
                found = f"{after:.3f} nats per token, {before:.3f} before"
                yield Check(f"{prompt.place}, its answer", after <= before + WORSE, found)
            if prompt.contains:
                text = self._text(prompt.prompt, weights)
                yield Check(f"{prompt.place}, its text", prompt.contains in text, f"{text[:80]!r}")

    def _nats(self, prompt: Prompt, weights: Weights) -> float:
        """The mean negative log-probability of the tokens of the pinned answer."""
        ids, start = self._ids(prompt.prompt + prompt.answer), len(self._ids(prompt.prompt))
        scores = self._scores(ids, weights)[min(start, len(ids) - 1) :]
        return -float(np.mean([score.logprob for score in scores]))

    def _ids(self, text: str) -> list[int]:
        return self._engine.tokenizer.encode_prompt(text)[: self._engine.max_model_len - 1]

    def _scores(self, ids: list[int], weights: Weights) -> list[TokenScore]:
        request = GenerationRequest(ids, 0, SamplingSettings(temperature=0), prompt_logprobs=True)
        return [score for delta in self._ask(request, weights) for score in delta.prompt_scores]

    def _text(self, prompt: str, weights: Weights) -> str:
        ids = self._ids(prompt)
        most = min(MOST_TOKENS, self._engine.max_model_len - len(ids))
        request = GenerationRequest(ids, most, SamplingSettings(temperature=0))
        return "".join(delta.text for delta in self._ask(request, weights))

    def _ask(self, request: GenerationRequest, weights: Weights) -> list[Delta]:
        """Raises Draining if the engine stops meanwhile, RuntimeError if it fails."""
        deltas: queue.Queue[Delta] = queue.Queue()
        self._engine.submit_own(request, deltas.put, weights)
        found = complete_answer(deltas)
        if found[-1].finish_reason == "cancelled":
            raise Draining
        if found[-1].finish_reason == "error":
            raise RuntimeError(found[-1].error)
        return found


def check_gates(trained: RestoredRun) -> Check:
    """The project's evaluation with its gates, by a process of its own."""
    arguments = ("eval", "--run", trained.run.name, "--step", str(trained.step))
    options: Any = {"cwd": trained.project.root, "limit_s": GATES_S}
    with Child(aifx_command(*arguments), **options) as child:
        ended = child.wait()
    found = "passed" if ended.succeeded else f"aifx eval ended with {ended.how}: {ended.last_line}"
    return Check(f"the gates {', '.join(trained.config.eval.gates)}", ended.succeeded, found)


def computes_in(dtype_name: str, quantize: str) -> str:
    """The key of PARITY. Raises UsageError for what has none."""
    key = dtype_name if quantize == "none" else quantize
    if key not in PARITY:
        raise UsageError(
            f"--watch with {key}", f"parity is known for {', '.join(PARITY)}", "aifx serve, without --watch"
        )
    return key
