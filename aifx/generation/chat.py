"""A prompt as the message of a user, written by the chat template that a run keeps."""

from __future__ import annotations

from datetime import date

from aifx.core.errors import UsageError
from aifx.data.chat.assets import kept_template, make_renderer
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.text import TokenFormat
from aifx.loading.restore import RestoredRun


def chat_renderer(trained: RestoredRun) -> ChatRenderer:
    """The renderer of a run's chats. Raises UsageError if the run has no chat template."""
    form, run = trained.task.format, trained.run
    template = kept_template(run.assets)
    if template is None or not isinstance(form, TokenFormat):
        why = f"{run.assets} holds no chat template: the model was not trained to answer"
        raise UsageError(f"run {run.name} cannot chat", why, f"aifx generate --run {run.name}    (without --chat)")
    day = getattr(trained.config.data, "template_date", None)
    return make_renderer(form.tokenizer, template, run.assets, date.fromisoformat(day) if day else date.today())


def chat_prompt(trained: RestoredRun, prompt: str, system: str | None = None) -> list[int]:
    """The tokens that a run's model reads before it answers.

    Raises UsageError if the run has no chat template, DataError if the template refuses the messages.
    """
    messages = [{"role": "system", "content": system}] if system is not None else []
    return chat_renderer(trained).prompt([*messages, {"role": "user", "content": prompt}])
