"""The line of an answer in the access log, without its prompt unless `serve.log_prompts`."""

from __future__ import annotations

from dataclasses import dataclass, field

from aifx.core.web.traffic import AccessRecord
from aifx.serving.requests import Usage


@dataclass
class AnswerRecord(AccessRecord):
    """The line of a request to a model in the access log."""

    model: str | None = None
    stream: bool = False
    rows: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list)
    queue_s: float | None = None
    first_token_s: float | None = None
    prompt: object = None

    def add(self, usage: Usage) -> None:
        """Count what one of the answers cost."""
        self.prompt_tokens = (self.prompt_tokens or 0) + usage.prompt_tokens
        self.completion_tokens = (self.completion_tokens or 0) + usage.completion_tokens
        self.cached_tokens = (self.cached_tokens or 0) + usage.cached_tokens
        if usage.queue_s is not None:
            self.queue_s = max(self.queue_s or 0.0, usage.queue_s)
