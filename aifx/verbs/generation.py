"""Text of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.parsing import check_utf8
from aifx.core.steps import parse_step
from aifx.verbs.arguments import Settings, Step, StrPath, overrides
from aifx.verbs.models import open_model

if TYPE_CHECKING:
    from aifx.serving.generate import GeneratedText


def generate(
    run: StrPath,
    prompt: str | Callable[[], str] | None = None,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: Step = None,
    chat: bool = False,
    system: str | None = None,
    settings: Settings = None,
    trust_code: str | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> GeneratedText:
    """Write text with a run's language model. The same seed writes the same text.

    What is not given comes from `[generate]` of the project.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        prompt: the text to continue, or a function that reads it, called once the other arguments are checked.
        max_tokens: most tokens to write.
        temperature: of the sampling; 0 takes the likeliest token.
        top_k: sample among so many of the likeliest tokens; 0 among all.
        top_p: sample among the likeliest tokens of this total probability.
        seed: of the sampling.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        chat: whether the prompt is a user's message, which the model answers.
        system: with `chat`, a system message before it.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.
        on_text: called with each piece of the text as soon as it is written. The first is the prompt, unless it is a
            message of a chat.

    Example:
        >>> written = aifx.generate("runs/main", "Call me", max_tokens=4)
        >>> written.prompt, written.max_tokens
        ('Call me', 4)
    """
    from aifx.config.schema import check_options
    from aifx.config.sections import GenerateSection

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    check_options(GenerateSection, sampling, "aifx generate")
    if system is not None and not chat:
        raise UsageError("--system requires --chat", "it is a message of a conversation", "aifx generate --chat")
    directory, project = open_model(run, trust_code)
    at, changed = parse_step(step), overrides(settings)
    text = prompt() if callable(prompt) else prompt
    given = {"prompt": text, **sampling}
    from aifx.loading.restore import restore_run
    from aifx.serving.generate import Chat, GeneratedText, write_text

    trained = restore_run(directory, project, step=at, overrides=changed)
    section = trained.config.generate.model_copy(update={k: v for k, v in given.items() if v is not None})
    check_utf8("prompt", section.prompt)
    check_utf8("message of the system", system or "")
    how = Chat(system) if chat else None
    if not chat:
        on_text(section.prompt)
    pieces = []
    for piece in write_text(trained, section, seed=seed, chat=how):
        pieces.append(piece)
        on_text(piece)
    return GeneratedText.of(trained, section, seed, "".join(pieces), how)
