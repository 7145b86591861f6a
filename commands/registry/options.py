"""Options and output that the commands of `aifx registry` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import DryRunOption, RequestOption
from aifx.commands.console.output import Output
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.verbs.registry import PolicyPage
    from aifx.verbs.registry_acts import Act

WIDTH = 80

VersionArgument = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="Version: NAME@v3, NAME@ALIAS or NAME@DIGITS.")
]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="Alias, such as production.")]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="FOLDER|URL", help="Where the models are. By default registry.root of aifx.toml."),
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Sign with the private key in this PEM file.")
]


@dataclass(frozen=True)
class ActOptions:
    """Options of the commands that change a registry."""

    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Say why, in the ledger.")] = ""
    request: RequestOption = None
    dry_run: DryRunOption = False
    root: RootOption = None


def hint_at(root: str | None, hint: str) -> str:
    """A hint whose commands have the `--root` that was given."""
    from aifx.verbs.registry import with_root

    return hint if root is None else with_root(hint, root)


def print_row(out: Output, label: str, text: str) -> None:
    """A line with a label. A text that is too long is folded, which imports rich."""
    line = one_line(f"{label}  {text}")
    if out.json or len(line) <= WIDTH:
        out.print(line)
        return
    from rich.text import Text

    out.row(Text(f"{label}  "), Text(one_line(text)))


def print_act(out: Output, done: Act, sentence: str) -> None:
    """Print what was done, and what each rule of the policy found."""
    out.result(done)
    for finding in done.findings:
        print_row(out, "passed" if finding.passed else "FAILED", f"{finding.rule}: {finding.found}")
        if finding.hint:
            first, *others = finding.hint.split(", and: ")
            out.print("\n         and: ".join([f"        hint: {first}", *others]))
    for why in done.repaired:
        out.print(f"damaged: {why}")
    repaired = " (its damaged files were written again)" if done.repaired else ""
    out.print(f"{sentence}{ending(done, done.entry, repaired)}")


def ending(done: Act | PolicyPage, entry: int | None, otherwise: str = "") -> str:
    """What follows the sentence about an act that was only tried, was done before, or had nothing to do."""
    if done.dry_run:
        return " (not done: --dry-run)"
    if done.is_repeated:
        return f" (entry {entry}, which an earlier call with this request id made)"
    return otherwise or (" (nothing to do)" if entry is None else "")
