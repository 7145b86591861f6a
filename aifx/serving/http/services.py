"""Start the engine or the predictor of a run, with its routes: text if the model writes, otherwise predictions.

The routes of embeddings and tokens are here as well.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from aifx.core.errors import AifxError, UsageError
from aifx.core.json_files import JsonLines, readable_bytes
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.data.base import DataFormat
from aifx.loading.restore import RestoredRun, read_current, restore_run, verified_manifest
from aifx.loading.steps import choose_step
from aifx.programs.build import build
from aifx.serving.engine import Engine
from aifx.serving.generate import unable_to_write
from aifx.serving.http import documents, protocol
from aifx.serving.http.answers import json_response
from aifx.serving.http.chat import chat_completions
from aifx.serving.http.completions import completions, usage_answer
from aifx.serving.http.documents import Detokenized, Embedding, Embeddings, Operation, TokenizerInfo, Tokens
from aifx.serving.http.predictions import PredictionState, classify, predict, results
from aifx.serving.http.protocol import ApiError, DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from aifx.serving.http.shadow import Shadow, check_routes
from aifx.serving.http.state import ServerState, record_of
from aifx.serving.http.text import TextState, renderer_of, total_usage
from aifx.serving.predictor import Predictor
from aifx.serving.record import SHADOW_FILE
from aifx.serving.requests import Embedded
from aifx.serving.start import free_memory, start_engine, start_predictor
from aifx.serving.swap import SHARE_OF_COPY, ModelIdentity, ModelSource, Watcher, watch
from aifx.serving.worker import WorkClock

logger = logging.getLogger(__name__)


async def embeddings(request: Request) -> Response:
    """The last hidden state of each text, pooled over its tokens."""
    state: TextState = request.app.state.server
    body = await state.read(request, EmbeddingRequest)
    adapter = state.adapter_of(body.model)
    prompts = await state.prompts(body.input, "input")
    for ids in prompts:
        state.check_prompt(ids, "input")
    embed = partial(state.engine.embed, adapter=adapter)
    found: list[Embedded] = await results(state, request, [partial(embed, ids) for ids in prompts], "input")
    data = [
        Embedding(object="embedding", index=index, embedding=_written(one.vector, body.encoding_format))
        for index, one in enumerate(found)
    ]
    for one in found:
        record_of(request).add(one.usage)
    usage = usage_answer(total_usage([one.usage for one in found], 1))
    return json_response(Embeddings(object="list", data=data, model=body.model or state.name, usage=usage))


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    numbers = np.asarray(vector, "<f4")
    return base64.b64encode(numbers.tobytes()).decode() if encoding == "base64" else numbers.tolist()


async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    state: TextState = request.app.state.server
    body = await state.read(request, TokenizeRequest)
    state.adapter_of(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: give either prompt or messages", param="prompt")
    if body.messages is not None:
        ids = await state.chat_prompt(body.messages, body.tools)
    else:
        (ids,) = await state.encode([body.prompt or ""], "prompt")
        ids = state.tokenizer.as_prompt(ids) if body.add_special_tokens else ids
    names = [state.tokenizer.token(token) for token in ids] if body.return_token_strs else None
    most = state.engine.max_model_len
    return json_response(Tokens(count=len(ids), max_model_len=most, tokens=ids, token_strs=names))


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    state: TextState = request.app.state.server
    body = await state.read(request, DetokenizeRequest)
    state.adapter_of(body.model)
    if body.tokens and max(body.tokens) >= state.tokenizer.vocab_size:
        why = f"token {max(body.tokens)} of a vocabulary of {state.tokenizer.vocab_size}"
        raise ApiError(400, f"tokens: {why}", param="tokens")
    return json_response(Detokenized(prompt=state.tokenizer.decode(body.tokens)))


async def tokenizer_info(request: Request) -> Response:
    """The names of special tokens, and the chat template."""
    state: TextState = request.app.state.server
    tokenizer = state.tokenizer
    known: dict[str, str] = {}
    if tokenizer.begin_ids:
        known["bos_token"] = tokenizer.token(tokenizer.begin_ids[0])
    if state.renderer is not None:
        known["chat_template"] = state.renderer.template.source
    return json_response(TokenizerInfo(tokenizer_class="aifx", eos_token=tokenizer.token(tokenizer.eos_id), **known))


TEXT_OPERATIONS = (
    Operation("POST", "/v1/completions", protocol.CompletionRequest, documents.Completion, completions),
    Operation("POST", "/v1/chat/completions", protocol.ChatRequest, documents.ChatCompletion, chat_completions),
    Operation("POST", "/v1/embeddings", protocol.EmbeddingRequest, documents.Embeddings, embeddings),
    Operation("POST", "/tokenize", protocol.TokenizeRequest, documents.Tokens, tokenize),
    Operation("POST", "/detokenize", protocol.DetokenizeRequest, documents.Detokenized, detokenize),
    Operation("GET", "/tokenizer_info", None, documents.TokenizerInfo, tokenizer_info),
)

Watch = Callable[[ModelSource, Path | None], Watcher[Any]]
"""Starts a watcher from what names the model that should serve, and a canary file."""


@dataclass(frozen=True)
class Service:
    """A run that is served.

    Attributes:
        trained: the model, without its arrays.
        fits: the fields of `aifx serve --json` that say how much the engine takes at once.
        watch: lets other models take over. Raises UsageError, DataError.
        clock: of the engine's work.
    """

    state: ServerState
    trained: RestoredRun
    fits: Mapping[str, Any]
    watch: Watch
    clock: WorkClock


def open_service(trained: RestoredRun, clock: WorkClock | None = None, **common: Any) -> Service:
    """Start the engine or the predictor of a run.

    Args:
        clock: of a service beside it; both share its time.
        common: fields of `ServerState`, "settings" among them.

    Raises AifxError for what cannot be served.
    """
    programs = build(trained.config, trained.task, trained.layout)
    is_text = unable_to_write(programs) is None
    state, fits = (_text if is_text else _predictions)(trained, clock, **common)
    state.swaps.models[state.engine.fingerprint] = ModelIdentity.of(trained)
    trained, engine = _without_arrays(trained), state.engine
    assert isinstance(engine, Engine | Predictor)

    def start_watch(source: ModelSource, canary: Path | None) -> Watcher[Any]:
        return watch(engine, state.settings, source, canary=canary, project=trained.project, counts=state.swaps)

    return Service(state, trained, fits, start_watch, engine.clock)


def add_shadow(
    service: Service, directory: RunDirectory, project: Project, step: StepChoice | None, overrides: Sequence[str]
) -> Shadow:
    """Load a second model beside the one that serves, and let it answer `serve.shadow_share` of the requests.

    Raises AifxError for what cannot be served, or does not fit into memory.
    """
    state, settings = service.state, service.state.settings
    path = Path(settings.shadow_file) if settings.shadow_file else service.trained.run.path / SHADOW_FILE
    try:
        file = JsonLines(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{path} cannot be written", why, "aifx serve --set serve.shadow_file=FILE") from None
    with ExitStack() as opened:
        opened.callback(file.close)
        try:
            _check_shadow_memory(service, directory, project, step, overrides)
            trained = restore_run(directory, project, step=step, overrides=overrides)
            own = settings.model_copy(update={"log_requests": False, "adapters": ()})
            common = {"name": directory.name, "settings": own, "log": state.log, "key": state.key}
            second = open_service(trained, service.clock, **common).state
            opened.callback(second.engine.stop)
        except AifxError as error:
            error.what = f"--shadow {directory.name}: {error.what}"
            raise
        check_routes(state, second, directory.name)
        model, same = ModelIdentity.of(trained), _have_same_tokenizer(state, second)
        shadow = Shadow(second, model, state.swaps.models, file, settings.shadow_share, reads_tokens=same)
        opened.pop_all()
    state.shadow = shadow
    state.drains.append(shadow.drain)
    state.metrics.count_shadow(shadow.counts)
    logger.info(f"--shadow {directory.name} answers {settings.shadow_share:.0%} of the requests, too, into {path}")
    return shadow


def _have_same_tokenizer(*states: ServerState) -> bool:
    return len({state.tokenizer.data for state in states if isinstance(state, TextState)}) <= 1


def _check_shadow_memory(
    service: Service, directory: RunDirectory, project: Project, step: StepChoice | None, overrides: Sequence[str]
) -> None:
    """Raise UsageError if the weights of a second model do not fit beside those that serve."""
    is_version = directory.model_digest is not None
    at = step if is_version else choose_step(directory, read_current(directory, project, overrides), step)
    arrays = verified_manifest(directory, project, at).arrays
    needed = SHARE_OF_COPY * sum(one.num_bytes for name, one in arrays.items() if name.split("/")[0] == "params")
    free = free_memory(service.trained.layout.platform)
    if needed > free:
        why = f"its weights need {readable_bytes(needed)} for a moment, and {readable_bytes(free)} are free"
        raise UsageError("a second model does not fit", why, "aifx serve --memory with a smaller pool")


def _text(trained: RestoredRun, clock: WorkClock | None, **common: Any) -> tuple[TextState, Mapping[str, Any]]:
    engine = start_engine(trained, common["settings"], clock)
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


def _predictions(
    trained: RestoredRun, clock: WorkClock | None, **common: Any
) -> tuple[PredictionState, Mapping[str, Any]]:
    form, data = trained.task.format, trained.task.data
    predictor = start_predictor(trained, common["settings"], clock)
    assert form is not None
    operations = (prediction_operation(form, data.classes),)
    state = PredictionState(engine=predictor, operations=operations, **common)
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
