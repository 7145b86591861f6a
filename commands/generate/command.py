"""`aifx generate`: text from a trained model."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from aifx.commands.console.options import JsonOption, ModelOption, RunOption, SetOption, StepOption, TrustCodeOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.limits import check_limits
from aifx.verbs.jobs import refuse_job

PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT|-", help="Text to continue. - reads stdin. By default generate.prompt."
    ),
]

MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", min=1, help="Write at most N tokens. By default generate.max_tokens."),
]

TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0.0,
        max=100.0,
        help="Sampling temperature; 0 takes the likeliest token. By default generate.temperature.",
    ),
]

TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        min=0,
        help="Sample among the K likeliest tokens; 0 among all. By default generate.top_k.",
    ),
]

TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Sample among the likeliest tokens of total probability P. By default generate.top_p.",
    ),
]

ChatOption = Annotated[
    bool, typer.Option("--chat", help="Take the prompt for a user's message, and write the model's answer.")
]

SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="With --chat: a message of the system before it.")
]

SeedOption = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the sampling.")]


def generate(
    run: RunOption = None,
    model: ModelOption = None,
    trust_code: TrustCodeOption = None,
    prompt: PromptOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
    chat: ChatOption = False,
    system: SystemOption = None,
    step: StepOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write text with a trained language model, token by token.

    Examples:
        aifx generate --prompt "Call me Ishmael"
        aifx generate --temperature 0 --max-tokens 50
        echo "Thus spake the whale:" | aifx generate --prompt - --seed 7
        aifx generate --run main --step last --json
        aifx generate --chat --system "Be brief." --prompt "Who is Ishmael?"

    Options that are not given come from [generate] of aifx.toml, otherwise from the run's configuration.
    """
    with terminal(json, streams=True) as out:
        refuse_job("generate")
        check_limits()
        from aifx.verbs.generation import generate
        from aifx.verbs.models import choose_model

        def write(piece: str) -> None:
            if not json:
                out.write(piece, exact=not out.stdout.isatty())

        written = generate(
            choose_model(run, model),
            _read_stdin if prompt == "-" else prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            step=step,
            chat=chat,
            system=system,
            settings=set_,
            trust_code=trust_code,
            on_text=write,
        )
        write("\n")
        out.result(written)


def _read_stdin() -> str:
    """All of stdin, less the line end that `echo` puts after it."""
    raw: Any = sys.stdin.buffer.read()
    try:
        return str(raw.decode("utf-8")).removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as err:
        raise UsageError("the prompt on stdin is not UTF-8", str(err), "iconv -t UTF-8") from err
