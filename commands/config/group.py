"""`aifx config`: show, check and describe the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.terminal import terminal
from aifx.commands.console.writing import to_json
from aifx.verbs.completion import complete_run, complete_section

if TYPE_CHECKING:
    from rich.text import Text

    from aifx.verbs.configuration import Setting

ShownRunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Print the configuration of run NAME. By default that of aifx.toml.",
        show_default=False,
        autocompletion=complete_run,
    ),
]

app = typer.Typer(
    help="""Show, check and describe the configuration.

    Examples:
        aifx config show --origin        print every value and its origin
        aifx config check                report all mistakes in aifx.toml
        aifx config keys train           list the keys of [train]
    """
)


@app.command()
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Also print the origin of each value.")] = False,
    run: ShownRunOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Print the configuration of the project or of a run, as TOML.

    Examples:
        aifx config show
        aifx config show --origin --set train.num_steps=40
        aifx config show --run main

    aifx imports a task of the project's own, which runs its code.
    """
    with terminal(json) as out:
        from aifx.verbs.configuration import config_show, config_toml

        if json:
            out.result(config_show(run=run, settings=set_, origin=origin))
        else:
            out.print(_painted(config_toml(run=run, settings=set_, origin=origin)), soft_wrap=True)


@app.command()
def check(set_: SetOption = None, json: JsonOption = False) -> None:
    """Check aifx.toml and the files that it names, and report every mistake with its line.

    Examples:
        aifx config check
        aifx config check --set model.num_heads=6
        aifx config check --json
    """
    with terminal(json) as out:
        from aifx.verbs.configuration import config_check

        found = config_check(settings=set_)
        out.result(found)
        out.print(f"{found.path}: valid")
        for line in found.data:
            out.print(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of aifx.toml, for completion and checks in editors.

    Inside a project with a task, family, objective or data of its own, it includes their keys.
    This imports their modules.

    Examples:
        aifx config schema > aifx.schema.json
    """
    with terminal() as out:
        from aifx.verbs.configuration import config_schema

        out.write(to_json(config_schema()) + "\n")


@app.command()
def keys(
    section: Annotated[
        str | None,
        typer.Argument(
            metavar="[SECTION]",
            help="List only the keys of this section.",
            show_default=False,
            autocompletion=complete_section,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/config.md.")] = False,
    json: JsonOption = False,
) -> None:
    """List the keys of aifx.toml with their values, defaults and meanings.

    Examples:
        aifx config keys
        aifx config keys optimizer

    Inside a project with a task, family, objective or data of its own, it includes their keys.
    This imports their modules.
    """
    with terminal(json) as out:
        from aifx.verbs.configuration import config_keys

        found = config_keys(section)
        out.result(found)
        if markdown and not json:
            out.write(settings_table(found.keys))
            return
        for setting in found.keys:
            variant = f" ({setting.variant})" if setting.variant else ""
            out.print(f"{setting.section}.{setting.key}{variant} = {setting.default_text}")
            out.print(f"    {setting.description}")
            out.print(f"    {setting.expected}")


def settings_table(found: Iterable[Setting]) -> str:
    """Return a Markdown table per section, and per task if its section differs."""
    blocks: dict[str, list[str]] = {}
    for setting in found:
        title = f"### `[{setting.section}]`" + (f", `{setting.variant}`" if setting.variant else "")
        rows = blocks.setdefault(title, ["| key | values | default | meaning |", "| --- | --- | --- | --- |"])
        meaning = f"{setting.description} *" if setting.is_resume_safe else setting.description
        cells = (setting.key, setting.expected, setting.default_text, meaning)
        key, expected, default, meaning = (cell.replace("|", "\\|") for cell in cells)
        rows.append(f"| `{key}` | {expected} | `{default}` | {meaning} |")
    return "\n\n".join("\n".join([title, "", *rows]) for title, rows in blocks.items()) + "\n"


def _painted(toml: str) -> Text:
    """Sections bold and comments dim."""
    from rich.text import Text

    lines = []
    for line in toml.splitlines():
        value, mark, comment = line.rpartition("  # ")
        if line.startswith("["):
            lines.append(Text(line, "bold"))
        elif line.startswith("# "):
            lines.append(Text(line, "dim"))
        else:
            lines.append(Text(value).append(mark + comment, "dim" if mark else ""))
    return Text("\n").join(lines)
