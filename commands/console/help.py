"""The help of a command: what it does, examples, then the options.

The examples stand in the docstring of the command's function, after a line `Examples:`, indented.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

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
