"""Checks of a request before the engine takes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from aifx.programs.serving import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS
from aifx.serving.requests import SEEDS, GenerationRequest, RequestError, SamplingSettings


def check_request(request: GenerationRequest, vocab_size: int, room: int, adapters: Collection[str]) -> None:
    """Raises RequestError.

    Args:
        room: tokens of a prompt with its answer, at the most.
    """
    prompt, bias = request.prompt_ids, request.sampling.logit_bias
    if not prompt:
        raise RequestError("prompt_ids", "the prompt is empty")
    for field, tokens in (("prompt_ids", prompt), ("logit_bias", bias)):
        if outside := [token for token in tokens if not 0 <= token < vocab_size]:
            raise RequestError(field, f"token {outside[0]} is not one of 0 to {vocab_size - 1}")
    if request.max_tokens < 0:
        raise RequestError("max_tokens", f"expected 0 or more, got {request.max_tokens}")
    if (total := len(prompt) + request.max_tokens) > room:
        why = f"{len(prompt)} tokens of the prompt and max_tokens = {request.max_tokens} are {total}, and {room} fit"
        raise RequestError("max_tokens" if len(prompt) < room else "prompt_ids", why)
    if request.adapter is not None and request.adapter not in adapters:
        raise RequestError("adapter", f"there is no adapter {request.adapter}")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError("logprobs", f"expected 0 to {MAX_TOP_LOGPROBS}, got {request.logprobs}")
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError("logit_bias", f"expected {MAX_LOGIT_BIAS} tokens at most, got {len(bias)}")
    for name, is_valid, expected in _limits(request.sampling):
        if not is_valid:
            raise RequestError(name, f"expected {expected}, got {getattr(request.sampling, name)}")


def _limits(s: SamplingSettings) -> Iterator[tuple[str, bool, str]]:
    """For each setting: its name, whether its value is valid, and the valid range."""
    yield "temperature", 0 <= s.temperature <= 100, "0 to 100"
    yield "top_p", 0 < s.top_p <= 1, "more than 0 and 1 at most"
    yield "min_p", 0 <= s.min_p <= 1, "0 to 1"
    yield "top_k", 0 <= s.top_k < 2**31, "0 or more"
    yield "seed", 0 <= s.seed < SEEDS, "0 to 2^32 - 1"
    yield "repetition_penalty", 0 < s.repetition_penalty <= 100, "more than 0 and 100 at most"
    yield "presence_penalty", abs(s.presence_penalty) <= 100, "-100 to 100"
    yield "frequency_penalty", abs(s.frequency_penalty) <= 100, "-100 to 100"
