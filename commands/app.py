"""The tree of commands. A command's module is imported when the command is called, not before."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import aifx
from aifx.commands.console.help import parse_help, write_help
from aifx.commands.console.terminal import is_colored, to_json
from aifx.core.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """A command in the table: `attribute` of `aifx.commands.<module>`, a function or a `typer.Typer`.

    Attributes:
        default: the command below it that runs if the command line names none; empty for the group's help.
    """

    module: str
    attribute: str
    summary: str
    group: str
    default: str = ""


START = "Start a project"
TRAIN = "Train and use a model"
LOOK = "Look at runs and checkpoints"
HEALTH = "Look after machines"
SETUP = "Set up"

COMMANDS: dict[str, Entry] = {
    "init": Entry("init.command", "init", "Start a project from a template.", START),
    "train": Entry("train.command", "train", "Train the project's model, or resume a training that stopped.", TRAIN),
    "eval": Entry(
        "eval.command", "eval_", "Measure a checkpoint on held-out data and compare it with its gates.", TRAIN
    ),
    "predict": Entry(
        "predict.command", "predict", "Predict labels, probabilities or values for new rows or images.", TRAIN
    ),
    "generate": Entry("generate.command", "generate", "Write text with a trained model.", TRAIN),
    "runs": Entry("runs.group", "app", "List, show, compare, watch, tag, rename and delete runs.", LOOK),
    "ckpt": Entry("ckpt.group", "app", "List and show checkpoints.", LOOK),
    "doctor": Entry(
        "doctor.group", "app", "Check the health of machines, and say what to do next.", HEALTH, default="node"
    ),
    "bench": Entry("bench.group", "app", "Measure this machine and project, compare, and gate regressions.", HEALTH),
    "kernels": Entry("kernels.group", "app", "Explain, tune and list the implementations of the hot loops.", SETUP),
    "config": Entry("config.group", "app", "Show, check and describe the configuration.", SETUP),
}


class _Page:
    """Help that begins with examples, and usage errors that know their command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        write_help(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc, no-any-return]
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


class Command(_Page, TyperCommand):
    """A command."""


class Group(_Page, TyperGroup):
    """Commands below a command. A misspelt command is answered with the nearest right one.

    Attributes:
        default: the command that runs if the command line names none: `aifx doctor --json` runs `aifx doctor node
            --json`. A group without a default shows its help.
    """

    default = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing and not self.default:
            typer.echo(ctx.get_help(), color=ctx.color)
            raise typer.Exit
        if self.default and not self._names_a_command(ctx, args):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _names_a_command(self, ctx: Any, args: list[str]) -> bool:
        """Whether `args` start with a command, with what should be one, or with the group's own --help."""
        if not args:
            return bool(ctx.resilient_parsing)  # a shell that completes `aifx doctor ` gets the commands
        return not args[0].startswith("-") or args[0] in ctx.help_option_names

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        found = super().shell_complete(ctx, incomplete)
        if self.default and incomplete.startswith("-"):
            default = self.commands[self.default]
            with default.make_context(self.default, [], parent=ctx, resilient_parsing=True) as inner:
                names = {item.value for item in found}
                found += [item for item in default.shell_complete(inner, incomplete) if item.value not in names]
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not ctx.resilient_parsing:
            shown = [one for one in known if one not in self.commands or not self.commands[one].hidden]
            raise UsageError(
                f"{ctx.command_path} has no command {name!r}", did_you_mean(name, shown), f"{ctx.command_path} --help"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        commands = [command for command in commands if not command.hidden]
        with formatter.section(typer.style("Commands", bold=True)):
            formatter.write_dl([(command.name, parse_help(command.help or "").summary) for command in commands])


class Root(Group):
    """`aifx` itself."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            groups.setdefault(entry.group, []).append((name, entry.summary))
        for title, rows in groups.items():
            with formatter.section(typer.style(title, bold=True)):
                formatter.write_dl([(name.ljust(8), summary) for name, summary in rows])


def load(name: str) -> Any:
    """The command called `name`, from its module."""
    entry = COMMANDS[name]
    target = getattr(importlib.import_module(f"aifx.commands.{entry.module}"), entry.attribute)
    host = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)
    if isinstance(target, typer.Typer):
        for command in target.registered_commands:
            command.cls = Command
        host.add_typer(target, name=name, cls=Group)
    else:
        host.command(name, cls=Command)(target)
    made: Any = typer.main.get_group(host).commands[name]
    if isinstance(made, Group):
        made.default = entry.default
    return made


app = typer.Typer(
    name="aifx",
    cls=Root,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)


@app.callback()
def aifx_(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; works behind any command. Also AIFX_DEBUG=1.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Train, evaluate and look after models, from one terminal.

    Examples:
        aifx init my-model            start a project that works
        aifx train                    train it; type it again to go on after a stop
        aifx eval                     measure it and compare it with its gates
        aifx generate --prompt "Call me"
        aifx runs ls                  what has been trained here, and how it went
        aifx doctor                   whether this machine is healthy
    """
    if version:
        typer.echo(to_json({"schema_version": 1, "version": aifx.__version__}) if json else f"aifx {aifx.__version__}")
        raise typer.Exit
    if json:
        command = ctx.invoked_subcommand or "COMMAND"
        raise UsageError(
            "--json stands before the command", "it belongs to the command that answers", f"aifx {command} --json"
        )


def invoke(args: list[str]) -> int:
    """Runs the command that `args` name and returns its exit code; raises what it raises."""
    root = typer.main.get_command(app)
    if "_AIFX_COMPLETE" in os.environ:
        root.main(args, prog_name="aifx")
    if args[:1] == ["help"]:
        args = [*args[1:], "--help"]
    try:
        with root.make_context("aifx", list(args), color=is_colored(sys.stdout)) as context:
            root.invoke(context)
    except typer.Exit as ended:
        if not _is_typers_own(ended.exit_code, args):
            return ended.exit_code
    except SystemExit as ended:
        if not _is_typers_own(ended.code, args):
            raise
    else:
        return 0
    raise UsageError(
        "this shell cannot be completed",
        "completion is for bash, zsh, fish and PowerShell",
        "run it from such a shell",
    )


def _is_typers_own(code: object, args: list[str]) -> bool:
    """Whether an exit is typer's word for a shell that it cannot complete for: its 1 would be read as a verdict."""
    return code == 1 and args[0] in ("--install-completion", "--show-completion")
