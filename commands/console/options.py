"""Options that mean the same on every command that takes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from aifx.verbs.completion import complete_run, complete_setting

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]

RunOption = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="NAME", help="Run to use. By default the run written last.", autocompletion=complete_run
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set a configuration value for this call. Overrides aifx.toml. Can be repeated.",
        autocompletion=complete_setting,
    ),
]

ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME@ALIAS", help="Use a version from the registry instead of a run."),
]

TrustCodeOption = Annotated[
    str | None,
    typer.Option("--trust-code", metavar="DIGEST", help="With --model: run the version's own code."),
]

StepOption = Annotated[
    str | None, typer.Option("--step", metavar="N|best|last", help="Checkpoint to use. By default eval.checkpoint.")
]

RequestOption = Annotated[
    str | None,
    typer.Option("--request", metavar="ID", help="Do this once: a second call with ID reports the first one's."),
]

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; use the defaults.")]

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what the command would do, without doing it.")]


def option_group(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one parameter per option, made from one that takes dataclasses of options.

    A field of the dataclass is an option: `quick: Annotated[bool, typer.Option("--quick")] = False`.
    """
    own = inspect.signature(command, eval_str=True)
    kinds: dict[str, Any] = {p.name: p.annotation for p in own.parameters.values() if is_dataclass(p.annotation)}
    grouped = []
    for kind in kinds.values():
        hints = get_type_hints(kind, include_extras=True)
        grouped += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        groups = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in kinds.items()
        }
        command(**given, **groups)

    parameters = [*(p for p in own.parameters.values() if p.name not in kinds), *grouped]
    with_options.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    del with_options.__wrapped__
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
