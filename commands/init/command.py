"""`aifx init`: a project from a template."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import DryRunOption, JsonOption, YesOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.verbs.completion import complete_template

if TYPE_CHECKING:
    from aifx.verbs.projects import BundledTemplate, Scaffolded


DirectoryArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[DIR]", help="Folder of the project. By default the working directory, if it is empty."),
]

TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        "-t",
        metavar="NAME|PATH|GIT-URL",
        help="Template to use. By default aifx asks on a terminal; otherwise language-model.",
        autocompletion=complete_template,
    ),
]

AnswerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--answer", "-a", metavar="KEY=VALUE", help="Answer one of the template's questions. Can be repeated."
    ),
]

ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Use a folder that is not empty. Existing files stay; new files of the same name become NAME.new.",
    ),
]

RefOption = Annotated[
    str | None,
    typer.Option(
        "--vcs-ref",
        metavar="REF",
        help="Tag, branch or commit of a template in git. By default the newest version tag.",
    ),
]

ListOption = Annotated[bool, typer.Option("--list", help="List the templates that come with aifx.")]


def init(
    directory: DirectoryArgument = None,
    template: TemplateOption = None,
    answer: AnswerOption = None,
    yes: YesOption = False,
    force: ForceOption = False,
    vcs_ref: RefOption = None,
    list_: ListOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Start a project from a template.

    Examples:
        aifx init --list
        aifx init my-model --template language-model
        aifx init my-model --yes --answer tracker=tensorboard
        aifx init . --template https://example.org/our/template.git --vcs-ref v2

    On a terminal, aifx asks the template's questions. Otherwise, and with --yes, it uses their defaults. The templates
    of aifx need no network. --template also accepts copier templates (https://copier.readthedocs.io) that run no code.
    """
    with terminal(json) as out:
        from aifx.verbs.projects import init, init_templates

        if list_:
            found = init_templates()
            out.result(found)
            out.table(["template", "what it is"], [(t.name, t.summary) for t in found.templates])
            return
        ask = not yes and sys.stdin.isatty() and out.err.is_terminal
        made = init(
            directory or Path(),
            template,
            answers=answer or (),
            force=force,
            vcs_ref=vcs_ref,
            dry_run=dry_run,
            ask=ask,
            choose=partial(_choose, out, ask),
        )
        out.result(made)
        _show(out, made)
        if force and not made.set_beside:
            out.log("--force was not needed: no file was in the way")


def _choose(out: Output, ask: bool, templates: Sequence[BundledTemplate], default: str) -> str:
    """The template when none was named: asked for on a terminal, else the first that people want."""
    if not ask:
        out.log(f"template: {default} (--template takes another; aifx init --list)")
        return default
    from rich.prompt import Prompt

    for known in templates:
        out.log(f"{known.name}: {known.summary}")
    return Prompt.ask("Which template?", choices=[t.name for t in templates], default=default, console=out.err)


def _show(out: Output, made: Scaffolded) -> None:
    would = "would make" if made.dry_run else "made"
    if not made.files:
        out.print(f"{os.path.relpath(made.project)} already holds every file of {made.template}, with the same content")
        return
    out.print(f"{would} {os.path.relpath(made.project)} from {made.template}:")
    for name in made.files:
        out.print(f"  {name}" + ("  (a file of that name is there and stays)" if name in made.set_beside else ""))
    if not made.dry_run and made.next:
        out.print("\nnext:")
        for step in made.next:
            out.print(f"  {step}")
