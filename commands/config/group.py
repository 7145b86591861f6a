"""`aifx config`: show, check and describe the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aifx.commands.console.completion import complete_run, complete_section
from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.terminal import terminal
from aifx.commands.console.writing import to_json

if TYPE_CHECKING:
    from rich.text import Text

    from aifx.commands.console.output import Output
    from aifx.config import Config
    from aifx.config.schema import Own, Setting

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


@dataclass(frozen=True)
class ShownConfig:
    """What `aifx config show --json` prints: values and, with --origin, who set them, by section and key."""

    config: dict[str, dict[str, Any]]
    origins: dict[str, dict[str, str]] | None


@dataclass(frozen=True)
class CheckedConfig:
    """What `aifx config check --json` prints if there is no mistake."""

    valid: Literal[True]
    path: str
    task: str
    data: list[str]  # lines about the data: the columns of a table


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
        config = _load(out, run, set_ or ())
        values = config.values()
        origins = {
            section: {key: config.origin(f"{section}.{key}").where for key in keys} for section, keys in values.items()
        }
        out.document(ShownConfig(values, origins if origin else None))
        if not json:
            out.print(_painted(config.to_toml(origins=origin)), soft_wrap=True)


@app.command()
def check(set_: SetOption = None, json: JsonOption = False) -> None:
    """Check aifx.toml and the files that it names, and report every mistake with its line.

    Examples:
        aifx config check
        aifx config check --set model.num_heads=6
        aifx config check --json
    """
    from aifx.core.project import find_project

    with terminal(json) as out:
        from aifx.config.checks import warn_of_warmup
        from aifx.tasks.preflight import check_project
        from aifx.tasks.registry import data_summary

        config = _load(out, None, set_ or ())
        project = find_project()
        check_project(config, project)
        for name in config.train.hooks:
            from aifx.training.hooks.project import find_hook  # here, since few projects have any

            out.log(f"importing {name} from {project.root}")
            find_hook(name, project)
        warn_of_warmup(config.schedule, config.train.num_steps)
        path, data = project.config_path, data_summary(config.parts, config.data, config.apply_to(project))
        out.document(CheckedConfig(True, str(path), config.task.kind, data))
        out.print(f"{path}: valid")
        for line in data:
            out.print(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of aifx.toml, for completion and checks in editors.

    Inside a project with a task, family, objective or data of its own, it includes their keys.
    This imports their modules.

    Examples:
        aifx config schema > aifx.schema.json
    """
    from aifx.kinds import json_schema

    with terminal() as out:
        out.write(to_json(json_schema(_own_sections(out))) + "\n")


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
    from aifx.config.config import SECTION_NAMES
    from aifx.config.parts import PART_NAMES
    from aifx.config.schema import SettingList
    from aifx.core.errors import UsageError, did_you_mean
    from aifx.kinds import settings

    with terminal(json) as out:
        if section is not None and section not in SECTION_NAMES:
            raise UsageError(f"no section [{section}]", did_you_mean(section, SECTION_NAMES), "aifx config keys")
        own = _own_sections(out) if section in (None, *PART_NAMES) else None
        found = [setting for setting in settings(own) if section in (None, setting.section)]
        out.document(SettingList(found))
        if markdown and not json:
            out.write(settings_table(found))
            return
        for setting in found:
            variant = f" ({setting.variant})" if setting.variant else ""
            out.print(f"{setting.section}.{setting.key}{variant} = {_default(setting)}")
            out.print(f"    {setting.description}")
            out.print(f"    {setting.expected}")


def settings_table(found: Iterable[Setting]) -> str:
    """Return a Markdown table per section, and per task if its section differs."""
    blocks: dict[str, list[str]] = {}
    for setting in found:
        title = f"### `[{setting.section}]`" + (f", `{setting.variant}`" if setting.variant else "")
        rows = blocks.setdefault(title, ["| key | values | default | meaning |", "| --- | --- | --- | --- |"])
        meaning = f"{setting.description} *" if setting.is_resume_safe else setting.description
        cells = (setting.key, setting.expected, _default(setting), meaning)
        key, expected, default, meaning = (cell.replace("|", "\\|") for cell in cells)
        rows.append(f"| `{key}` | {expected} | `{default}` | {meaning} |")
    return "\n\n".join("\n".join([title, "", *rows]) for title, rows in blocks.items()) + "\n"


def _own_sections(out: Output) -> Own | None:
    """The sections of the project's own code. Outside of a project there are none; code that fails is reported."""
    from aifx.core.errors import AifxError, UsageError
    from aifx.core.project import find_project
    from aifx.kinds import project_code, project_sections

    try:
        project = find_project()
    except UsageError:
        return None
    try:
        for name in project_code(project.config_path):
            out.log(f"importing {name} from {project.root}")
        return project_sections(project)
    except AifxError as error:
        out.log(f"without the keys of the project's own code: {error.what}: {error.why}")
        return None


def _load(out: Output, run: str | None, overrides: list[str] | tuple[str, ...]) -> Config:
    from aifx.core.project import find_project
    from aifx.kinds import load_config, project_code, read_config

    project = find_project()
    path = project.config_path if run is None else project.existing_run(run).config
    for name in project_code(path, overrides):
        out.log(f"importing {name} from {project.root}")
    if run is None:
        return load_config(project, overrides)
    return read_config(project.existing_run(run).config, project, overrides)


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


def _default(setting: Setting) -> str:
    from aifx.config.toml import literal

    return "(not set)" if setting.default is None else literal(setting.default)
