"""Hooks of mkdocs: references of commands, pages from the root of the repository, and a check for external files.

A page includes the reference of a command with such a line:

    <!-- reference: aifx bench gate -->

The reference is generated from the command when the site is built, so it equals `--help`. That of a function of Python
comes from its signature and docstring:

    <!-- reference: aifx.data_add -->

That of an interface comes from the source code, with the classes that implement it and the modules that call it:

    <!-- interface: Model -->
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"^<!-- reference: (aifx(?: [\w-]+)*) -->$", re.MULTILINE)
INTERFACE_MARKER = re.compile(r"^<!-- interface: (\w+) -->$", re.MULTILINE)
PYTHON_MARKER = re.compile(r"^<!-- reference: aifx\.(\w+) -->$", re.MULTILINE)
ROOT_FILES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE")
ROOT_PAGES = {"README.md": "index.md"} | {name: name for name in ROOT_FILES}
EXTERNAL = re.compile(
    r"""\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//|(?:@import|url\()\s*["']?(?:https?:)?//"""
)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that is not hidden with its full name, groups before their subcommands."""
    import typer

    from aifx.commands.app import app

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        if hasattr(command, "list_commands"):
            with command.make_context(name, [], resilient_parsing=True) as context:
                for child in command.list_commands(context):
                    found = command.get_command(context, child)
                    if not found.hidden:
                        yield from below(f"{name} {child}", found)

    yield from below("aifx", typer.main.get_command(app))


def reference(name: str, command: Any) -> str:
    """Return the usage, arguments, options and subcommands of a command, as Markdown."""
    from aifx.commands.console.typer_internals import parse_help, usage_pieces

    with command.make_context(name, [], resilient_parsing=True) as context:
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        parts = [f"```console\n$ {name} {usage_pieces(command, context)}\n```"]
        rows = [(left, *split_notes(right)) for left, right in filter(None, records)]
        rows = [row for row in rows if "--help" not in row[0]]
        if rows:
            width = 3 if any(notes for _, _, notes in rows) else 2
            header = ("argument or option", "meaning", "default or limits")
            parts.append(table(header[:width], [row[:width] for row in rows]))
        if hasattr(command, "list_commands"):
            children = [(child, command.get_command(context, child)) for child in command.list_commands(context)]
            visible = [(child, parse_help(one.help or "").summary) for child, one in children if not one.hidden]
            parts.append(table(("subcommand", "purpose"), visible))
    return "\n\n".join(parts)


def python_reference(name: str) -> str:
    """Return the signature, description, arguments and example of a function of aifx, as Markdown."""
    import inspect

    import aifx
    from aifx.verbs.catalogs import StepOptions

    function = getattr(aifx, name)
    given = inspect.signature(function).parameters
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in given.values()]
    parts = [f"```python\naifx.{name}{str(inspect.Signature(bare)).replace(chr(39), chr(34))}\n```"]
    text, sections = split_docstring(inspect.getdoc(function) or "")
    rows = named_lines(sections.get("Args", ""))
    if any(one.kind is one.VAR_KEYWORD for one in given.values()):
        rows += named_lines(split_docstring(inspect.getdoc(StepOptions) or "")[1]["Attributes"])
    parts += [text, table(("argument", "meaning"), rows) if rows else ""]
    if example := sections.get("Example"):
        parts.append(f"```pycon\n{example}\n```")
    return "\n\n".join(filter(None, parts))


def interface_reference(name: str) -> str:
    """Return the description, members, implementations and callers of an interface, as Markdown."""
    if str(ROOT / "scripts") not in sys.path:
        sys.path.append(str(ROOT / "scripts"))
    from interfaces import read_source

    source = read_source(ROOT)
    interface = source.interfaces[name]
    rows = [(one.signature, one.summary, "yes" if one.is_required else "") for one in interface.members]
    callers, implementations = source.callers(interface), source.implementations(interface)
    parts = [
        interface.description,
        table(("member", "purpose", "required"), rows) if rows else "",
        f"**Implemented by** {listed(implementations) or 'no class that names it'}.",
        f"**Called by** {listed(callers)}." if callers else "",
    ]
    return "\n\n".join(filter(None, parts))


def listed(names: list[str]) -> str:
    """Return names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return what a docstring says, and the content of its sections: Args, Attributes, Example."""
    sections = {}

    def take(section: re.Match[str]) -> str:
        sections[section[1]] = textwrap.dedent(section[2]).strip("\n")
        return ""

    rest = re.sub(r"^(Args|Attributes|Example):\n((?: {4}.*\n|\n)+)", take, f"{text}\n", flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", rest).strip(), sections


def named_lines(section: str) -> list[tuple[str, str]]:
    """Return the names and meanings of a section of a docstring."""
    found = re.findall(r"^([\w*]+): (.+(?:\n {4}.+)*)", section, re.MULTILINE)
    return [(name, " ".join(meaning.split())) for name, meaning in found]


def split_notes(text: str) -> tuple[str, str]:
    """Return an option's help without the brackets at its end, and their content: its default and limits."""
    match = re.search(r"\s*\[([^\[\]]*)\]$", text)
    if match is None:
        return text, ""
    notes = re.sub(r"([\d.]+)<=x<=([\d.]+)", r"\1 to \2", match[1].removeprefix("default: "))
    return text[: match.start()], re.sub(r"x>=([\d.]+)", r"\1 or more", notes)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table whose first column is code."""
    escaped = [[cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for cell in row[1:]] for row in rows]
    names = [row[0].replace("|", "\\|") for row in rows]
    lines = [header, ("---",) * len(header)]
    lines += [(f"`{name}`", *cells) for name, cells in zip(names, escaped, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_references(markdown: str) -> str:
    """Replace each marker by its reference. Raises KeyError for an unknown command or interface."""
    markdown = PYTHON_MARKER.sub(lambda marker: python_reference(marker[1]), markdown)
    markdown = INTERFACE_MARKER.sub(lambda marker: interface_reference(marker[1]), markdown)
    if not MARKER.search(markdown):
        return markdown
    known = dict(commands())
    return MARKER.sub(lambda marker: reference(marker[1], known[marker[1]]), markdown)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository."""
    from mkdocs.structure.files import File

    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert references, and change links between the root and docs/, which are one folder in the site."""
    if page.file.src_uri in ROOT_PAGES.values():
        return markdown.replace("](docs/", "](")
    return with_references(re.sub(r"\]\(\.\./(?=[A-Z])", "](", markdown))


def on_post_build(*, config: MkDocsConfig) -> None:
    """Fail if a page would load something from a network."""
    from mkdocs.exceptions import PluginError

    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in (".html", ".css") and (found := EXTERNAL.search(path.read_text("utf-8"))):
            raise PluginError(f"{path} loads from a network: {found[0]}")
