"""Text from a model: an engine with one row, in the caller's thread."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from aifx.config.sections import GenerateSection, Quantization
from aifx.core.errors import CheckpointError, UsageError
from aifx.core.results import Result
from aifx.data.text import TokenFormat
from aifx.data.tokenizer import Tokenizer
from aifx.loading.restore import RestoredRun
from aifx.programs.build import Programs
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.serving import bucket, one_row
from aifx.serving.device import Device
from aifx.serving.engine import Engine
from aifx.serving.requests import SEEDS, GenerationRequest, RequestError, SamplingSettings
from aifx.serving.rows import Weights
from aifx.specs import Params

if TYPE_CHECKING:
    from aifx.data.chat.rendering import ChatRenderer

logger = logging.getLogger(__name__)

MOST_CHUNK = 512
"""Tokens of a prompt that one call reads, at the most."""


@dataclass(frozen=True)
class GeneratedText(Result):
    """The document of `aifx generate --json`. `text` continues the prompt, or answers it in a chat."""

    run: str
    step: int
    prompt: str
    text: str
    seed: int
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    quantize: Quantization
    chat: bool = False
    system: str | None = None  # the message before the prompt in a chat
    model: str | None = None  # digest of the model version, with --model

    @classmethod
    def of(
        cls, trained: RestoredRun, settings: GenerateSection, seed: int, text: str, chat: Chat | None = None
    ) -> GeneratedText:
        return cls(
            run=trained.run.name,
            step=trained.step,
            text=text,
            seed=seed,
            chat=chat is not None,
            system=chat.system if chat else None,
            model=trained.run.model_digest,
            **settings.model_dump(),
        )


@dataclass(frozen=True)
class Chat:
    """The prompt is a user's message, after a message of the system if there is one."""

    system: str | None = None


def chat_renderer(trained: RestoredRun) -> ChatRenderer:
    """The renderer of a run's chats. Raises UsageError if the run has no chat template."""
    from aifx.data.chat.assets import kept_template, make_renderer  # with Jinja, for chats alone

    form, run = trained.task.format, trained.run
    template = kept_template(run.assets)
    if template is None or not isinstance(form, TokenFormat):
        why = f"{run.assets} holds no chat template: the model was not trained to answer"
        raise UsageError(f"run {run.name} cannot chat", why, f"aifx generate --run {run.name}    (without --chat)")
    day = getattr(trained.config.data, "template_date", None)
    return make_renderer(form.tokenizer, template, run.assets, date.fromisoformat(day) if day else date.today())


def unable_to_write(programs: Programs) -> str | None:
    """The reason why the programs' model cannot write text, or None."""
    if not programs.can_decode:
        return f"{programs.config.parts.named('model')} does not define decode, which writes token by token"
    return None if isinstance(programs.task.format, TokenFormat) else "its data has no tokenizer"


def write_text(
    trained: RestoredRun, settings: GenerateSection, *, seed: int = 0, chat: Chat | None = None
) -> Iterator[str]:
    """The text that continues `settings.prompt`, or with `chat` answers it, piece by piece.

    The same seed gives the same text. Raises UsageError if the model does not write, or does not chat.
    """
    programs, params, frozen = trained.programs(settings.quantize)
    if (why := unable_to_write(programs)) is not None:
        raise UsageError(f"run {trained.run.name} cannot write text", why, f"aifx eval {trained.run.option}")
    prompt_ids = None
    if chat is not None:
        messages = [{"role": "system", "content": chat.system}] if chat.system is not None else []
        prompt_ids = chat_renderer(trained).prompt([*messages, {"role": "user", "content": settings.prompt}])
    return continue_prompt(programs, params, frozen, settings, seed=seed, prompt_ids=prompt_ids)


def continue_prompt(
    programs: Programs,
    params: Params,
    frozen: Params,
    settings: GenerateSection,
    *,
    seed: int = 0,
    prompt_ids: Sequence[int] | None = None,
) -> Iterator[str]:
    """`write_text` with the programs of a model that writes.

    Args:
        prompt_ids: what the model reads; by default `settings.prompt`.
    """
    form = programs.task.format
    assert isinstance(form, TokenFormat)
    prompt_ids = form.tokenizer.encode_prompt(settings.prompt) if prompt_ids is None else prompt_ids
    sampling = SamplingSettings(settings.temperature, settings.top_k, settings.top_p, seed=seed % SEEDS)
    decoding, params = programs.as_decoding(params, frozen)
    engine = one_row_engine(decoding, params, form.tokenizer, len(prompt_ids), settings.max_tokens)
    return write(engine, GenerationRequest(prompt_ids, settings.max_tokens, sampling, forgets=True))


def one_row_engine(
    decoding: DecodingPrograms, params: Params, tokenizer: Tokenizer, prompt_len: int, max_tokens: int
) -> Engine:
    """An engine that answers one request at a time, by `Engine.write`: requests without rules, scores and adapters.

    Args:
        params: as the programs take them.
        prompt_len, max_tokens: of the longest request; of more, the engine forgets the older part.
    """
    max_len = bucket(prompt_len + max_tokens, decoding.model.max_seq_len)
    device = Device(one_row(decoding, params, max_len), [1], bucket(min(prompt_len, max_len), MOST_CHUNK))
    return Engine(device, Weights(params, "", b""), tokenizer, queue=1, prefix_cache=False)


def write(engine: Engine, request: GenerationRequest) -> Iterator[str]:
    """The text of an answer, piece by piece. Raises UsageError for a setting out of its range."""
    try:
        deltas = engine.write(request)
    except RequestError as error:
        raise UsageError(f"generate.{error.field} cannot be used", error.why, "docs/generate.md") from None
    tokens, room = len(request.prompt_ids), engine.max_model_len
    kept = room - min(request.max_tokens, room // 2)
    if kept < tokens:
        logger.warning(f"the prompt has {tokens} tokens; the model, whose context is {room}, reads the last {kept}")

    def texts() -> Iterator[str]:
        for delta in deltas:
            if delta.error is not None:
                raise CheckpointError("the model cannot write", delta.error, "aifx eval, for a first look")
            if delta.text:
                yield delta.text

    return texts()
