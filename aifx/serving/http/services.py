"""Start the engine or the predictor of a run, with its routes: text if the model writes, otherwise predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aifx.core.steps import StepChoice
from aifx.data.base import DataFormat
from aifx.loading.restore import RestoredRun
from aifx.programs.build import build
from aifx.serving.engine import Engine
from aifx.serving.generate import unable_to_write
from aifx.serving.http import documents, protocol
from aifx.serving.http.chat import chat_completions
from aifx.serving.http.completions import completions
from aifx.serving.http.openapi import Operation
from aifx.serving.http.predictions import PredictionState, classify, predict
from aifx.serving.http.state import ServerState
from aifx.serving.http.text import TextState, renderer_of
from aifx.serving.http.tokens import detokenize, embeddings, tokenize, tokenizer_info
from aifx.serving.predictor import Predictor
from aifx.serving.start import start_engine, start_predictor
from aifx.serving.swap import Watcher, watch

TEXT_OPERATIONS = (
    Operation("POST", "/v1/completions", protocol.CompletionRequest, documents.Completion, completions),
    Operation("POST", "/v1/chat/completions", protocol.ChatRequest, documents.ChatCompletion, chat_completions),
    Operation("POST", "/v1/embeddings", protocol.EmbeddingRequest, documents.Embeddings, embeddings),
    Operation("POST", "/tokenize", protocol.TokenizeRequest, documents.Tokens, tokenize),
    Operation("POST", "/detokenize", protocol.DetokenizeRequest, documents.Detokenized, detokenize),
    Operation("GET", "/tokenizer_info", None, documents.TokenizerInfo, tokenizer_info),
)

Watch = Callable[[StepChoice | None, Path | None, Sequence[str]], Watcher[Any]]
"""Makes a watcher from the choice of a step, a canary file and `--set` strings."""


@dataclass(frozen=True)
class Service:
    """A run that is served.

    Attributes:
        fits: the fields of `aifx serve --json` that say how much the engine takes at once.
        watch: lets new checkpoints take over. Raises UsageError, DataError.
    """

    state: ServerState
    fits: Mapping[str, Any]
    watch: Watch


def open_service(trained: RestoredRun, **common: Any) -> Service:
    """Start the engine or the predictor of a run.

    Args:
        common: fields of `ServerState`, "settings" among them.

    Raises AifxError for what cannot be served.
    """
    programs = build(trained.config, trained.task, trained.layout)
    is_text = unable_to_write(programs) is None
    state, fits = _text(trained, **common) if is_text else _predictions(trained, **common)
    trained, engine = _without_arrays(trained), state.engine

    def start_watch(choice: StepChoice | None, canary: Path | None, overrides: Sequence[str]) -> Watcher[Any]:
        options: dict[str, Any] = {"overrides": overrides, "counts": state.swaps}
        assert isinstance(engine, Engine | Predictor)
        return watch(engine, trained, state.settings, choice=choice, canary=canary, **options)

    return Service(state, fits, start_watch)


def _text(trained: RestoredRun, **common: Any) -> tuple[TextState, Mapping[str, Any]]:
    engine = start_engine(trained, common["settings"])
    state = TextState(
        engine=engine,
        tokenizer=engine.tokenizer,
        renderer=renderer_of(trained),
        operations=TEXT_OPERATIONS,
        **common,
    )
    if state.templates is not None:
        state.templates.start()
    fits = {
        "adapters": list(engine.adapters),
        "slots": list(engine.device.slots),
        "pool_tokens": engine.stats().pages_total * engine.page_size,
        "max_model_len": engine.max_model_len,
    }
    return state, fits


def _predictions(trained: RestoredRun, **common: Any) -> tuple[PredictionState, Mapping[str, Any]]:
    form, data = trained.task.format, trained.task.data
    predictor = start_predictor(trained, common["settings"])
    assert form is not None
    operations = (prediction_operation(form, data.classes),)
    state = PredictionState(engine=predictor, form=form, data=data, operations=operations, **common)
    return state, {"rows_per_batch": predictor.rows_per_batch}


def _without_arrays(trained: RestoredRun) -> RestoredRun:
    """The run as a watcher needs it. The engine has the arrays; another reference would keep those of old weights."""
    return replace(trained, params={}, frozen={})


def prediction_operation(form: DataFormat, classes: Sequence[str]) -> Operation:
    """The route of a task that predicts: for files if its format reads them, otherwise for rows."""
    if not form.media_types:
        return Operation("POST", "/v1/predict", protocol.PredictionRequest, documents.Predictions, predict)
    path = "/v1/classify" if classes else "/v1/predict"
    return Operation("POST", path, protocol.FileRequest, documents.Classification, classify, form.media_types)
