"""Imported models and adapters served: the log-probabilities of the training forward, for every family."""

from __future__ import annotations

import queue

import jax
import numpy as np
import peer_models
import pytest
from adapter_runs import hidden_of, logits_of, make_adapter_run

from aifx.core.errors import UsageError
from aifx.hub.importing import import_model
from aifx.loading.restore import restore_run
from aifx.parallel.context import ForwardContext
from aifx.serving.requests import GenerationRequest, SamplingSettings
from aifx.serving.start import start_engine

QUICK = ("gemma2", "gpt2")
SLOW = [name for name in peer_models.FIXED if name not in QUICK]
BOUND = 1e-4
LENGTH = 150  # more than two parts of a prompt, and than any window


def answer(engine, request):
    """All scores of prompt and answer."""
    deltas: queue.Queue = queue.Queue()
    engine.submit(request, deltas.put)
    scores = []
    while True:
        delta = deltas.get(timeout=120)
        scores += [*delta.prompt_scores, *delta.scores]
        if delta.finish_reason is not None:
            assert delta.finish_reason == "length", delta
            return scores


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_scores_are_those_of_the_training_forward(name, hub_models, empty_project):
    run = empty_project.run(import_model(str(hub_models(name)), empty_project).run)
    longer = ["model.max_seq_len=192"] if "gpt2" not in name else []  # which has no more positions
    trained = restore_run(run, empty_project, overrides=["serve.slots=[2]", *longer])
    engine = start_engine(trained, trained.config.serve)
    try:
        count = min(LENGTH, engine.max_model_len - 9)
        prompt = np.random.default_rng(0).integers(1, engine.vocab_size, count).tolist()
        settings = SamplingSettings(seed=1)
        scores = answer(
            engine, GenerationRequest(prompt, 9, settings, ignore_end=True, logprobs=0, prompt_logprobs=True)
        )
    finally:
        engine.stop()
    tokens, ctx, model = (
        np.array([[score.token for score in scores]]),
        ForwardContext(trained.layout),
        trained.task.model,
    )
    logits = model.head(trained.params, ctx)(model.hidden(trained.params, {"inputs": tokens}, ctx))
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(tokens.size - 1), tokens[0, 1:]]
    np.testing.assert_allclose([score.logprob for score in scores[1:]], expected, atol=BOUND)


@pytest.mark.representative("served adapters")
def test_each_request_has_its_own_adapter(hub_models, empty_project):
    base = empty_project.run(import_model(str(hub_models("llama")), empty_project, name="base").run)
    runs = {
        "small": make_adapter_run(empty_project, base, name="small"),
        "large": make_adapter_run(empty_project, base, "lora.rank=5", 'lora.targets=["query","down"]', name="large"),
    }
    trained = restore_run(base, empty_project, overrides=["serve.slots=[4]"])
    serve = trained.config.serve.model_copy(update={"adapters": tuple(f"{n}={run.name}" for n, run in runs.items())})
    engine = start_engine(trained, serve)
    prompt = peer_models.inputs()[0].tolist()
    expected = {None: logits_of(trained)[0]} | {n: logits_of(restore_run(r, empty_project))[0] for n, r in runs.items()}
    try:
        for name, logits in expected.items():
            request = GenerationRequest(prompt, 1, SamplingSettings(temperature=0), adapter=name, prompt_logprobs=True)
            for _ in range(2):  # alone, and from pages that another adapter must not have filled
                scores = answer(engine, request)
                own = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(prompt) - 1), prompt[1:]]
                np.testing.assert_allclose([score.logprob for score in scores[1 : len(prompt)]], own, atol=BOUND)
            found: queue.Queue = queue.Queue()
            engine.embed(prompt, found.put, adapter=name)
            hidden = hidden_of(trained if name is None else restore_run(runs[name], empty_project))[0]
            np.testing.assert_allclose(found.get(timeout=60).vector, hidden.mean(axis=0), atol=BOUND)
    finally:
        engine.stop()


def test_an_adapter_of_other_weights_is_refused(hub_models, empty_project):
    base = empty_project.run(import_model(str(hub_models("llama")), empty_project, name="base").run)
    other = empty_project.run(import_model(str(hub_models("mistral")), empty_project, name="other").run)
    make_adapter_run(empty_project, base, name="adapted")
    trained = restore_run(other, empty_project, overrides=["serve.slots=[4]"])
    for adapters, expected in (
        (("a=adapted",), "not an adapter of the weights of run other"),
        (("a=base",), "not an adapter"),
        (("adapted",), "NAME=RUN"),
    ):
        with pytest.raises(UsageError) as caught:
            start_engine(trained, trained.config.serve.model_copy(update={"adapters": adapters}))
        assert expected in str(caught.value)
