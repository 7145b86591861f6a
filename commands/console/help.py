"""The help of a command: what it does, examples, then the options.

The examples stand in the docstring of the command's function, after a line `Examples:`, indented.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import typer

_EXAMPLES = re.compile(r"^Examples?:[ \t]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class HelpText:
    """A docstring taken apart."""

    summary: str
    examples: tuple[str, ...]
    description: str


def parse_help(docstring: str) -> HelpText:
    """The first paragraph, the lines of `Examples:`, and what is left."""
    text = inspect.cleandoc(docstring)
    match = _EXAMPLES.search(text)
    examples = tuple(inspect.cleandoc("\n" + match.group(1)).splitlines()) if match else ()
    if match:
        text = text[: match.start()] + "\n" + text[match.end() :]
    summary, _, description = text.strip().partition("\n\n")
    return HelpText(" ".join(summary.split()), examples, description.strip())


def usage_pieces(command: Any, ctx: Any) -> str:
    """Return the usage after the command's name, such as `[OPTIONS] NAME [TAG]...`."""
    pieces = re.sub(
        r"\{([^}]*)\}", r"\1", " ".join(command.collect_usage_pieces(ctx))
    )  # required arguments: A, not {A}
    return pieces.replace("[[", "[").replace("]]", "]")


def write_help(command: Any, ctx: Any, formatter: Any) -> None:
    """Writes a command's whole help page."""
    text = parse_help(command.help or "")
    if text.summary:
        formatter.write_text(text.summary)
    if text.examples:
        with formatter.section(typer.style("Examples", bold=True)):
            for line in text.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    formatter.write_paragraph()
    formatter.write_usage(ctx.command_path, usage_pieces(command, ctx), prefix=typer.style("Usage:", bold=True) + " ")
    for paragraph in text.description.split("\n\n"):
        if paragraph:
            formatter.write_paragraph()
            formatter.write_text(" ".join(paragraph.split()))
    command.format_options(ctx, formatter)
