"""All code that depends on typer's private classes, as they are in typer 0.29 (test_typer_internals.py).

The help pages, a group's default command, commands that are imported when they are called, and typer's errors in our
three lines. The help of a command says what it does, then shows examples, then the options. The examples stand in the
docstring of the command's function, after a line `Examples:`, indented.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from aifx.core.errors import AifxError, ExitCode, UsageError, did_you_mean, nearest

_OF_TRAINED_MODELS = (
    "aifx eval",
    "aifx predict",
    "aifx score",
    "aifx monitor",
    "aifx generate",
)  # their --set changes no setting of the training
OTHER_NAMES = {"delete": "rm", "remove": "rm", "list": "ls"}
"""Names that other programs have for a command of aifx."""
_EXAMPLES = re.compile(r"^Examples?:[ \t]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", re.MULTILINE)


class HelpText(NamedTuple):
    """The first paragraph of a docstring, the lines of `Examples:`, and what is left."""

    summary: str
    examples: tuple[str, ...]
    description: str


def parse_help(docstring: str) -> HelpText:
    text = inspect.cleandoc(docstring)
    match = _EXAMPLES.search(text)
    examples = tuple(inspect.cleandoc("\n" + match.group(1)).splitlines()) if match else ()
    if match:
        text = text[: match.start()] + "\n" + text[match.end() :]
    summary, _, description = text.strip().partition("\n\n")
    return HelpText(" ".join(summary.split()), examples, description.strip())


class _Page:
    """Help that begins with examples, and usage errors that know their command."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        """Write a command's whole help page."""
        text = parse_help(self.help or "")
        if text.summary:
            formatter.write_text(text.summary)
        if text.examples:
            with formatter.section(typer.style("Examples", bold=True)):
                for line in text.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        formatter.write_usage(ctx.command_path, usage_pieces(self, ctx), prefix=typer.style("Usage:", bold=True) + " ")
        for paragraph in text.description.split("\n\n"):
            if paragraph:
                formatter.write_paragraph()
                formatter.write_text(" ".join(paragraph.split()))
        self.format_options(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc, no-any-return]
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


class Command(_Page, TyperCommand):
    """A command. Its help shows an argument's name without typer's name of the type, such as <list[str]>."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None  # type: ignore[attr-defined]


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
            visible = [one for one in known if one not in self.commands or not self.commands[one].hidden]
            meant = OTHER_NAMES.get(name)
            why = f"did you mean {meant!r}?" if meant in visible else did_you_mean(name, visible)
            raise UsageError(f"{ctx.command_path} has no command {name!r}", why, f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        commands = [command for command in commands if not command.hidden]
        with formatter.section(typer.style("Commands", bold=True)):
            formatter.write_dl([(command.name, parse_help(command.help or "").summary) for command in commands])


class Entry(NamedTuple):
    """A command in the table of a `LazyGroup`: `attribute` of a module of its package, a function or a `typer.Typer`.

    Attributes:
        group: the heading in the help under which the command is listed.
        default: the command below it that runs if the command line names none; empty for the group's help.
    """

    module: str
    attribute: str
    summary: str
    group: str
    default: str = ""


class LazyGroup(Group):
    """Commands of a table, each of which is loaded when it is called.

    Attributes:
        package: the one whose modules the table names.
    """

    table: ClassVar[Mapping[str, Entry]]
    package: ClassVar[str]

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.table:
            return None
        if cmd_name not in self.commands:
            entry = self.table[cmd_name]
            target = getattr(importlib.import_module(f"{self.package}.{entry.module}"), entry.attribute)
            self.commands[cmd_name] = _make_command(cmd_name, target, entry.default)
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.table.items():
            groups.setdefault(entry.group, []).append((name, entry.summary))
        for title, rows in groups.items():
            with formatter.section(typer.style(title, bold=True)):
                formatter.write_dl([(name.ljust(8), summary) for name, summary in rows])


def _make_command(name: str, target: Any, default: str) -> Any:
    """A command from a function or a `typer.Typer`, with our help and errors; `default` is that of a group."""
    host = typer.Typer(cls=Group, rich_markup_mode=None, add_completion=False)
    if isinstance(target, typer.Typer):
        _style(target)
        host.add_typer(target, name=name, cls=Group)
    else:
        host.command(name, cls=Command)(target)
    made: Any = typer.main.get_group(host).commands[name]
    if isinstance(made, Group):
        made.default = default
    return made


def _style(group: typer.Typer) -> None:
    """Give the commands below a group our help and errors."""
    for command in group.registered_commands:
        command.cls = Command
    for below in group.registered_groups:
        below.cls = Group
        if below.typer_instance is not None:
            _style(below.typer_instance)


def invoke(app: typer.Typer, args: list[str], *, is_colored: bool) -> int:
    """Run the command that `args` name and return its exit code; raises what the command raises."""
    root: Any = typer.main.get_command(app)
    if "_AIFX_COMPLETE" in os.environ:
        root.main(args, prog_name="aifx")
    if args[:1] == ["help"]:
        args = [*args[1:], "--help"]
    try:
        with root.make_context("aifx", list(args), color=is_colored) as context:
            root.invoke(context)
    except typer.Exit as ended:
        if not _is_typers_own(ended.exit_code, args):
            return ended.exit_code
    except SystemExit as ended:
        if not _is_typers_own(ended.code, args):
            raise
    else:
        return 0
    why = "it supports bash, zsh, fish and PowerShell"
    raise UsageError("completion does not support this shell", why, "run it from such a shell")


def parse(app: typer.Typer, args: Sequence[str]) -> dict[str, Any]:
    """The parameters of the command that `args` name, by the names of its function, without running it.

    Raises UsageError.
    """
    root: Any = typer.main.get_command(app)
    with root.make_context("aifx", list(args[:1])) as outer:
        name, command, _ = root.resolve_command(outer, list(args[:1]))
        try:
            with command.make_context(name, list(args[1:]), parent=outer) as inner:
                return dict(inner.params)
        except typer.TyperException as error:
            raise failure_of(error) from error


def check_words(app: typer.Typer, words: Sequence[str]) -> None:
    """Raise UsageError if words are no command, lack an argument, or have an option that the command does not have.

    Nothing is run, and no value is read: one may still be a name in braces.
    """
    command: Any = typer.main.get_command(app)
    context, rest = command.context_class(command, info_name="aifx"), list(words)
    while isinstance(command, TyperGroup):
        default = getattr(command, "default", "")
        if default and (not rest or rest[0].startswith("-")):
            rest = [default, *rest]
        if not rest:
            raise UsageError(f"{context.command_path} alone is no command", "", f"{context.command_path} --help")
        name, command, rest = command.resolve_command(context, rest)
        context = command.context_class(command, info_name=name, parent=context, **command.context_settings)
    options = {option: one for one in command.params for option in (*one.opts, *one.secondary_opts)}
    arguments, hint = [], f"{context.command_path} --help"
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            arguments += [word] if word != "--" else []
            if word == "--" or not context.allow_interspersed_args:
                arguments += rest
                break
            continue
        name, equals, _ = word.partition("=")
        found = options.get(name) if word.startswith("--") else options.get(word[:2])
        if found is None:
            what = f"{context.command_path} has no option {name!r}"
            raise UsageError(what, did_you_mean(name, [one for one in options if one.startswith("--")]), hint)
        if not equals and not getattr(found, "is_flag", False) and (word.startswith("--") or len(word) == 2):
            if not rest:
                raise UsageError(f"{context.command_path}: option {name!r} needs a value", "", hint)
            rest.pop(0)
    needed = [one for one in command.params if one.param_type_name == "argument" and one.required]
    if len(arguments) < len(needed):
        missing = ", ".join(one.metavar or one.name for one in needed[len(arguments) :])
        raise UsageError(f"{context.command_path}: an argument is missing", missing, hint)
    if not context.allow_interspersed_args and arguments:  # another command of aifx
        check_words(app, arguments)


def _is_typers_own(code: object, args: list[str]) -> bool:
    """Whether typer exits because it has no completion for the shell. Its exit code 1 would read as a verdict."""
    return code == 1 and args[0] in ("--install-completion", "--show-completion")


def usage_pieces(command: Any, ctx: Any) -> str:
    """Return the usage after the command's name, such as `[OPTIONS] NAME [TAG]...`."""
    pieces = " ".join(command.collect_usage_pieces(ctx))
    pieces = re.sub(r"\{([^}]*)\}", r"\1", pieces)  # required arguments: A, not {A}
    return pieces.replace("[[", "[").replace("]]", "]")


def failure_of(error: Any) -> AifxError:
    """An error that typer raises, as our error with three lines."""
    if not isinstance(error, typer.Abort):
        return _usage_error(error)
    if isinstance(error.__context__, EOFError) or isinstance(error.__cause__, EOFError):
        hint = "answer with options: see --help, or --yes"
        return UsageError("a question went unanswered", "standard input has ended", hint)
    return AifxError("interrupted", exit_code=ExitCode.INTERRUPTED)


def _usage_error(error: Any) -> UsageError:
    """typer's complaint about a command line in our three lines, with the nearest right option."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "aifx"
    hint = f"{command} --help"
    option = getattr(error, "option_name", None)
    if context and option and type(error).__name__ == "NoSuchOption":
        visible = [p for p in context.command.get_params(context) if not getattr(p, "hidden", False)]
        known = [name for parameter in visible for name in parameter.opts]
        if sibling := next((c for c in _siblings(context) if any(option in p.opts for p in c.params)), None):
            path = f"{context.parent.command_path} {sibling.name}"
            return UsageError(f"{command} has no option {option!r}", f"{path} has it", f"{path} --help")
        return _unknown_option(command, option, known)
    parameter = getattr(error, "param", None)
    message = " ".join(error.message.split()).rstrip(".").removeprefix("Value error, ")
    if parameter is not None and message:
        name = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.display_name_raw
        return UsageError(f"{command}: {name} cannot take this value", message, hint)
    extra = re.match(r"Got unexpected extra argument\(s\) \((\S+?)[ )]", message)
    if context and extra and extra[1] in {one.name for one in _siblings(context)}:
        path = f"{context.parent.command_path} {extra[1]}"
        return UsageError(f"{path}: its options come after {extra[1]!r}", "", f"{path} --help")
    text = " ".join(error.format_message().split()).rstrip(".")
    text = text.replace("Got unexpected extra argument(s)", "too many arguments")
    usage = f"usage: {command} {usage_pieces(context.command, context)}" if context else ""
    if context and extra:
        hint = _as_option(context, message[extra.start(1) :].removesuffix(")")) or hint
    return UsageError(f"{command}: {text[:1].lower()}{text[1:]}", usage, hint)


def _unknown_option(command: str, option: str, known: list[str]) -> UsageError:
    """The error for an option that `command` does not have, with the option or the setting that was meant."""
    what, word = f"{command} has no option {option!r}", option.lstrip("-")
    names = [name.removeprefix("--") for name in known if name.startswith("--")]
    matching = [name for name in names if name.startswith(word)]
    if len(matching) != 1 and "set" in names:
        from aifx.verbs.completion import settings_meant, settings_named

        keys = settings_named(word)
        if command in _OF_TRAINED_MODELS:
            keys = [key for key in keys if key.partition(".")[0] in ("data", "eval", "generate")]
        if keys:
            return UsageError(what, settings_meant(word, keys), f"{command} --set {keys[0]}=VALUE")
    match = matching[0] if len(matching) == 1 else nearest(word, names)
    why = f"did you mean '--{match}'?" if match else f"one of: {', '.join(sorted(known))}"
    return UsageError(what, why, f"{command} --help")


def _as_option(context: Any, words: str) -> str:
    """The command with `words` as the value of its option for a prompt, hardware or a run; empty if it has none."""
    known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
    option = next((one for one in ("--prompt", "--hardware", "--run") if one in known), "")
    if not option or (" " in words and option != "--prompt"):
        return ""
    import shlex  # here, since every command imports this module

    return f"{context.command_path} {option} {shlex.quote(words)}"


def _siblings(context: Any) -> list[Any]:
    """The other commands of the group."""
    if context is None or context.parent is None:
        return []
    commands = getattr(context.parent.command, "commands", {}).values()
    return [one for one in commands if one is not context.command and not one.hidden]
