"""`aifx doctor node`: the health of this machine, with evidence and the next action.

Monitoring systems get one line and an exit code. Nagios: https://nagios-plugins.org/doc/guidelines.html;
node-problem-detector: its docs/custom_plugin_monitor.md and pkg/custompluginmonitor/types (0 OK, 1 NonOK, everything
else Unknown).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.monitor_protocols import NPD_LENGTH, ProtocolExit, cut
from aifx.commands.doctor.options import CheckOptions, RootOption
from aifx.core.errors import UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.verbs.health import Report

NAGIOS = {"healthy": ("OK", 0), "warning": ("WARNING", 1), "unhealthy": ("CRITICAL", 2), "unknown": ("UNKNOWN", 3)}


class Format(StrEnum):
    """The reader of the report."""

    TEXT = "text"
    NAGIOS = "nagios"
    NPD = "npd"


@dataclass(frozen=True)
class NodeOptions(CheckOptions):
    """Options of the check of one machine and of its report: one option per attribute."""

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
        from aifx.verbs.health import doctor

        # During a stress test, SIGTERM is handled as Ctrl-C: what was measured until then is reported.
        with sigterm_as_ctrl_c() if options.stress else nullcontext() as stop:
            health = doctor(
                only=options.only or (),
                skip=options.skip or (),
                site=options.site,
                strict=options.strict,
                sample_s=options.sample,
                stress=options.stress.value if options.stress else None,
                imports_project=options.project,
                root=options.root,
                record=options.record,
                replay=options.replay,
                html=options.html,
                with_snapshot=options.with_snapshot,
            )
        if not is_text:
            out.report(health.faults)
            write_for_monitor(health.report, options.format, options.strict)
        out.result(health)
        show(out, health.report, health.rules, options.list_skipped)
        show_stress(out, health.stress)
        out.report(health.faults)
        if stop is not None and health.is_interrupted:
            out.exit_code = stop.code


def nagios(report: Report) -> tuple[str, int]:
    """Return `AIFX STATUS - text | figures` and the exit code. A limit of `0` alerts on any finding."""
    from aifx.verbs.health import SEVERITIES, counts

    word, code = NAGIOS[report.status]
    summary = f"{report.host or 'this machine'}: {counts(report)}"
    if report.findings:
        summary += f": {report.findings[0].headline}"
    found = Counter(finding.severity for finding in report.findings)
    limits = {"critical": ";0", "warning": "0;"}
    figures = [f"{severity}={found[severity]};{limits.get(severity, ';')};0" for severity in SEVERITIES]
    text = cut(one_line(summary).replace("|", "/"), 400)
    return f"AIFX {word} - {text} | {' '.join(figures)} duration={report.duration_s:.3f}s;;;0", code


def npd(report: Report, strict: bool = False) -> tuple[str, int]:
    """Return a message as long as a node condition may be, and the exit code. Warnings are OK, unless `strict`."""
    from aifx.verbs.health import code_of_status

    code = int(code_of_status(report.status, strict))
    if not report.findings:
        return "healthy", code
    more = len(report.findings) - 1
    return cut(one_line(report.findings[0].headline), NPD_LENGTH, f" (+{more})" if more else ""), code


def write_for_monitor(report: Report, format: Format, strict: bool) -> NoReturn:
    """Print the line and end the command. Raises ProtocolExit."""
    line, code = nagios(report) if format is Format.NAGIOS else npd(report, strict)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # a line that cannot be written is not a verdict
    raise ProtocolExit(code)


def show_stress(out: Output, stress: Any) -> None:
    """Print a row per measurement, and why the test ended if that was early. Without a stress test, print nothing."""
    if not isinstance(stress, Mapping):
        return
    out.print("")
    out.table(["device", "what", "rate", "of what it should be"], list(_rows(stress)), right=["rate"], wrap=True)
    if stress["ended"] != "finished":
        out.print(f"the stress test ended early: {stress['ended']}{': ' * bool(stress['why'])}{stress['why']}")


def _rows(stress: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    for device in stress["devices"]:
        name = device["device"]
        for one in _list(device["matmul"]):
            yield name, f"products in {one['dtype']}", _rate(one["tflops"], "TFLOP/s"), _of_peak(one)
        for one in _list(device["memory"]):
            yield name, "memory", _rate(one["gb_s"], "GB/s"), _of_peak(one)
        for one in _list(device["copies"]):
            yield name, f"copies {one['device']}", _rate(one["gb_s"], "GB/s"), _share(one["of_usual"], "what is usual")
        for one in _list(device["sustained"]):
            rate = _rate(one["tflops_last"], "TFLOP/s")
            yield name, f"after {one['seconds']:.0f} s of load", rate, _share(one["kept"], "the first")
    for one in _list(stress["collectives"]):
        yield "all", str(one["device"]), _rate(one["bus_gb_s"], "GB/s"), None
    for one in _list(stress["consistency"]):
        same = "alike" if not one["num_odd"] + one["num_unsteady"] + one["num_inexact"] else "not alike"
        yield one["device"], f"consistency check of {one['programs']} programs", f"{one['runs']} runs", same


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _rate(value: Any, unit: str) -> str:
    return f"{value:.3g} {unit}" if isinstance(value, int | float) else "?"


def _of_peak(one: Mapping[str, Any]) -> str | None:
    """Return the share of the peak, and of the rate that `aifx bench hardware` measured here."""
    shares = (_share(one["of_peak"], "peak"), _share(one["of_own"], "its own ceiling"))
    return ", ".join(filter(None, shares)) or None


def _share(value: Any, of: str) -> str | None:
    return f"{value:.0%} of {of}" if isinstance(value, int | float) else None
