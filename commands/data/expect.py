"""`aifx data expect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, MaxDroppedOption, StepOptions, print_made
from aifx.core.errors import UsageError

if TYPE_CHECKING:
    from aifx.verbs.data_expect import ContractHistory, RuleOutcome

MEANING_CHARACTERS = 28


@option_group
def expect(
    name: DatasetArgument,
    given: StepOptions,
    rules: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="File with the rules. By default rules.toml of the project."),
    ] = None,
    infer: Annotated[
        bool, typer.Option("--infer", help="Write FILE from what the version holds, and judge nothing.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Print the outcomes of each rule in all versions of NAME.")
    ] = False,
    max_dropped: MaxDroppedOption = 0.5,
) -> None:
    """Judge a version by the rules of a contract; drop the rows that break one.

    Examples:
        aifx data expect orders --infer
        aifx data expect orders
        aifx data expect orders@3f2a strict.toml --json
        aifx data expect orders --history

    Makes a new version. Exits 1 if a rule about the whole is broken, or if more than --max-dropped is dropped: then
    NAME still means the version before.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_expect import data_expect, data_expect_history, data_expect_infer

        if infer and history:
            raise UsageError("--infer and --history cannot be used together", "one writes rules", "leave one out")
        if history:
            if rules is not None:
                why = "the history has the rules of all versions"
                raise UsageError("--history takes no file", why, f"aifx data expect {name} --history")
            found = data_expect_history(name, root=given.root)
            out.result(found)
            _print_history(out, found)
            return
        if infer:
            written = data_expect_infer(name, rules, root=given.root)
            out.result(written)
            out.print(f"{written.path}: {len(written.rules)} rules that {written.reference} keeps")
            return
        made = data_expect(name, rules, max_dropped=max_dropped, **given.of_step())
        print_made(out, made)
        _print_outcomes(out, made.rules)


def _print_outcomes(out: Output, rules: tuple[RuleOutcome, ...]) -> None:
    rows = [(one.id, _cut(one.meaning), _measured(one.value, one.broken), one.outcome) for one in rules]
    out.table(["rule", "bound", "broken or value", "outcome"], rows, right=["broken or value"])
    for one in rules:
        if one.note:
            out.print(f"{one.id} is not judged: {one.note}")
        elif one.ids:
            out.print(f"{one.id}: row {one.ids[0]} broke it first")


def _print_history(out: Output, found: ContractHistory) -> None:
    rows = [
        (
            rule.id if one is rule.versions[0] else "",
            one.reference.partition("@")[2],
            (one.time or "-")[:16].replace("T", " "),
            _measured(one.value, one.broken),
            one.outcome,
        )
        for rule in found.rules
        for one in rule.versions
    ]
    if rows:
        out.table(["rule", "version", "judged", "broken or value", "outcome"], rows, right=["broken or value"])
    else:
        out.print(f"no version of {found.name} was judged by rules")


def _measured(value: float | str | None, broken: int | None) -> str:
    if broken is not None:
        return f"{broken:,}"
    if isinstance(value, str):
        return value.replace("T", " ")[:19]
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MEANING_CHARACTERS else f"{text[: MEANING_CHARACTERS - 1]}…"
