"""Text from a model: one prefill of the prompt, then a token at a time from a cache of keys and values."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from aifx.config.sections import GenerateSection, Quantization
from aifx.core.errors import UsageError
from aifx.data.text import TokenFormat
from aifx.generation.chat import chat_prompt
from aifx.generation.text import stream_text
from aifx.loading.restore import RestoredRun
from aifx.programs.build import Programs
from aifx.programs.decoding import DecodingPrograms, bucket
from aifx.programs.sampling import Sampling
from aifx.specs import Params

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedText:
    """What `aifx generate --json` prints. `text` is what follows the prompt, or answers it in a chat."""

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
            **settings.model_dump(),
        )


@dataclass(frozen=True)
class Chat:
    """The prompt is a user's message, after a message of the system if there is one."""

    system: str | None = None


def write_text(
    trained: RestoredRun, settings: GenerateSection, *, seed: int = 0, chat: Chat | None = None
) -> Iterator[str]:
    """The text that continues `settings.prompt`, or with `chat` answers it, piece by piece.

    Raises UsageError if the model does not write, or does not chat.
    """
    programs, params, frozen = trained.programs(settings.quantize)
    if (why := unable_to_write(programs)) is not None:
        raise UsageError(f"run {trained.run.name} cannot write text", why, f"aifx eval --run {trained.run.name}")
    prompt_ids = chat_prompt(trained, settings.prompt, chat.system) if chat else None
    return continue_prompt(*programs.one_copy(params, frozen), settings, seed=seed, prompt_ids=prompt_ids)


def unable_to_write(programs: Programs) -> str | None:
    """Why the programs' model cannot write text, or None."""
    if not programs.can_decode:
        return f"{programs.config.parts.named('model')} does not define decode, which writes token by token"
    return None if isinstance(programs.task.format, TokenFormat) else "its data has no tokenizer"


def continue_prompt(
    programs: Programs,
    params: Params,
    frozen: Params,
    settings: GenerateSection,
    *,
    seed: int = 0,
    prompt_ids: list[int] | None = None,
) -> Iterator[str]:
    """`write_text` with the programs of a model that writes, and arrays as these take them.

    Args:
        prompt_ids: what the model reads; by default `settings.prompt`.
    """
    form = programs.task.format
    assert isinstance(form, TokenFormat)
    prompt_ids = form.tokenizer.encode_prompt(settings.prompt) if prompt_ids is None else prompt_ids
    params = programs.merged(params, frozen) if programs.casts else params
    ids = generate(
        programs.decoding,
        programs.decoding.prepare(params),
        prompt_ids,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=seed,
        end_ids=form.tokenizer.end_ids,
    )
    return stream_text(form.tokenizer, prompt_ids, ids)


def generate(
    programs: DecodingPrograms,
    params: Params,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    end_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield tokens that continue the prompt: `max_tokens`, or all before one of `end_ids`.

    `params` may be those of `DecodingPrograms.prepare`, which are read faster.

    The same seed gives the same tokens. When the model's context is full, its older part is forgotten and the rest is
    read again: as much stays as leaves room for what is still to be written, at least half.

    Raises ValueError for an empty prompt, a token outside of the vocabulary, or a sampling value out of its range.
    """
    sampling = Sampling.of(temperature, top_k, top_p)
    tokens = [int(t) for t in prompt_ids]
    if not tokens:
        raise ValueError("prompt_ids: expected one token at least, got none")
    outside = [t for t in tokens if not 0 <= t < programs.model.vocab_size]
    if outside:
        raise ValueError(f"prompt_ids: expected tokens from 0 to {programs.model.vocab_size - 1}, got {outside[0]}")
    length = bucket(len(tokens) + max_tokens, programs.model.max_seq_len)
    if (kept := _num_kept(length, max_tokens)) < len(tokens):
        logger.warning(
            f"the prompt has {len(tokens)} tokens; the model, whose context is {length}, reads the last {kept}"
        )
    return _generate(programs, params, tokens, max_tokens, sampling, seed, end_ids)


def _num_kept(length: int, max_tokens: int) -> int:
    """How many of the latest tokens are read if a context of `length` is full and `max_tokens` are still to come."""
    return length - min(max_tokens, length // 2)


def _generate(
    programs: DecodingPrograms,
    params: Params,
    tokens: list[int],
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    end_ids: Collection[int],
) -> Iterator[int]:
    length = bucket(len(tokens) + max_tokens, programs.model.max_seq_len)
    decode = programs.decode(1, length)
    key = jax.random.key(seed)
    held = length  # tokens in the cache; a full one makes the first token prefill
    for written in range(max_tokens):
        draw = jax.random.fold_in(key, written)[None]
        if held == length:
            context = tokens[-_num_kept(length, max_tokens - written) :]
            padded = np.zeros((1, bucket(len(context), length)), np.int32)
            padded[0, : len(context)] = context
            prefill = programs.prefill(1, padded.shape[1], length)
            cache, token = prefill(params, padded, np.array([len(context)], np.int32), draw, sampling)
            held = len(context)
        else:
            cache, token = decode(params, cache, token, draw, sampling)
            held += 1
        tokens.append(int(token[0]))
        if tokens[-1] in end_ids:
            return
        yield tokens[-1]
