"""`aifx doctor node`: the health of this machine, with evidence and the next action."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption, given_options, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.formats import Format, write_for_monitor
from aifx.commands.doctor.options import CheckOptions, RootOption, exit_code
from aifx.core.errors import EnvironmentFault, ExitCode, UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c

if TYPE_CHECKING:
    from aifx.health.report import Report
    from aifx.health.rules import Rule
    from aifx.health.snapshot import Snapshot

OF_A_LIVE_MACHINE = ("root", "record", "sample", "stress", "project")
"""Options that determine how a machine is read."""


@dataclass(frozen=True)
class NodeOptions(CheckOptions):
    """How one machine is checked, and where the report goes: one option per attribute."""

    project: Annotated[
        bool, typer.Option("--project", help="Also import the project's own task, to check its configuration in full.")
    ] = False
    root: RootOption = None
    list_skipped: Annotated[
        bool, typer.Option("--list-skipped", help="List the rules that were skipped, with the reasons.")
    ] = False
    with_snapshot: Annotated[
        bool, typer.Option("--with-snapshot", help="With --json: add all that was read, under 'snapshot'.")
    ] = False
    format: Annotated[
        Format,
        typer.Option(
            "--format", help="Print text, or one line with the exit codes of Nagios or node-problem-detector."
        ),
    ] = Format.TEXT
    json: JsonOption = False


@option_group
def node(*, options: NodeOptions) -> None:
    """Check the health of this machine, and say what to do next.

    Exit 0: healthy, possibly with warnings; 1: unhealthy; 2: the state of a part is unknown, or the check cannot run.

    Examples:
        aifx doctor
        aifx doctor --only nvidia --sample 10
        aifx doctor --stress quick
        aifx doctor --record node.json; aifx doctor --replay node.json
    """
    is_text = options.format is Format.TEXT
    if options.json and not is_text:
        why = "stdout has either a line or a document"
        raise UsageError("--format cannot be used with --json", why, "aifx doctor --json")
    # `main` reports failures in the way of the monitoring system.
    with terminal(options.json) if is_text else nullcontext(Output()) as out:
        from aifx.commands.doctor.report import show
        from aifx.commands.doctor.stress import show_stress
        from aifx.core.facts import to_document
        from aifx.health.check import check
        from aifx.health.rules import load_rules, read_site, select

        began, site = time.monotonic(), read_site(options.site)
        rules = select(load_rules(site).values(), options.only or (), options.skip or ())
        ended, snapshot = _snapshot(out, options, rules)
        report = check(snapshot, rules, site, began)
        ids = [rule.id for rule in rules]
        faults = _save(options, snapshot, report, ids)
        if not is_text:
            out.report(faults)
            write_for_monitor(report, options.format, options.strict)
        measured = {"stress": to_document(snapshot.facts["stress"])} if options.stress else {}
        read = {"snapshot": snapshot.document()} if options.with_snapshot else {}
        out.document(report.document() | measured | read)
        show(out, report, ids, options.list_skipped)
        if options.stress:
            show_stress(out, snapshot.facts["stress"])
        out.report(faults)
        raise SystemExit(int(ended) or exit_code(report.status, options.strict, faults))


def _snapshot(out: Output, options: NodeOptions, rules: list[Rule]) -> tuple[ExitCode, Snapshot]:
    """Return what the rules are evaluated on, and the exit code of a stress test that a signal ended."""
    from aifx.health.check import collect
    from aifx.health.host import Host, open_copy
    from aifx.health.snapshot import read

    given = given_options(options)
    if options.replay is not None:
        from aifx.health.fleet.record import is_record

        if is_record(options.replay):
            hint = f"aifx doctor fleet --replay {options.replay}"
            raise UsageError(f"{options.replay} is the record of a fleet", "this command checks one node", hint)
        if wrong := next((given[name] for name in OF_A_LIVE_MACHINE if name in given), None):
            why = "a replay reads the file alone, and nothing of a machine"
            raise UsageError(f"{wrong} cannot be used with --replay", why, f"aifx doctor --replay {options.replay}")
        return ExitCode.OK, read(options.replay)
    if options.root is None:
        host = Host(imports_project=options.project)
    else:
        if wrong := next((given[name] for name in ("stress", "project") if name in given), None):
            why = f"{options.root} holds a copy of files, and {wrong} needs the machine itself"
            raise UsageError(f"{wrong} cannot be used with --root", why, f"aifx doctor --root {options.root}")
        host = open_copy(options.root)
    if options.stress is None:
        return ExitCode.OK, collect(host, rules, options.sample)
    with sigterm_as_ctrl_c() as stop:
        snapshot = collect(host, rules, options.sample, options.stress.value)
    is_ended = snapshot.scope().look_up("stress.ended") == "interrupted"
    return stop.code if is_ended else ExitCode.OK, snapshot


def _save(options: NodeOptions, snapshot: Snapshot, report: Report, ids: list[str]) -> list[EnvironmentFault]:
    """Write the requested files. Return the failures: the report is still printed if a file could not be written."""
    faults = []
    if options.record is not None:
        from aifx.health.snapshot import write

        try:
            write(snapshot, options.record)
        except EnvironmentFault as fault:
            faults.append(fault)
        except OSError as error:
            what, why = f"{options.record} cannot be written", error.strerror or str(error)
            faults.append(EnvironmentFault(what, why, "aifx doctor --record ANOTHER_FILE"))
    if options.html is not None:
        from aifx.core.pages import write_page
        from aifx.health.page import node_page

        try:
            write_page(node_page(report, ids, snapshot.time), options.html)
        except EnvironmentFault as fault:
            faults.append(fault)
    return faults
