"""The health of this machine, and comparisons of what was read of one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, UsageError
from aifx.core.facts import to_document
from aifx.core.json_values import plain
from aifx.core.results import SCHEMA_VERSION, Result
from aifx.health.report import SEVERITIES, Finding, Group, Report, by_reason, counts, grouped, skipped_rules
from aifx.lines.reports import leave_doctor_report
from aifx.verbs.arguments import StrPath
from aifx.verbs.servers import RunningServer

if TYPE_CHECKING:
    from aifx.health.diff import Difference
    from aifx.health.rules import Rule
    from aifx.health.snapshot import Snapshot

StressLevel = Literal["quick", "full"]


def path_of(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def code_of_status(status: str, strict: bool, faults: Sequence[AifxError] = ()) -> ExitCode:
    """Return the exit code of a report. A requested file that could not be written counts as unknown."""
    if status == "unhealthy" or (status == "warning" and strict and not faults):
        return ExitCode.VERDICT
    return ExitCode.UNABLE if status == "unknown" or faults else ExitCode.OK


@dataclass(frozen=True)
class NodeHealth(Result):
    """The health of a machine.

    Attributes:
        report: the findings.
        rules: ids of the rules that were selected.
        snapshot: what was read of the machine.
        stress: the fact "stress"; None without a stress test.
        faults: failures to write the requested files.
        strict: whether warnings are a bad verdict.
        with_snapshot: whether the document has the snapshot.
    """

    report: Report
    rules: tuple[str, ...]
    snapshot: Snapshot
    stress: Any = None
    faults: tuple[EnvironmentFault, ...] = ()
    strict: bool = False
    with_snapshot: bool = False

    @property
    def status(self) -> str:
        """ "healthy", "warning", "unhealthy" or "unknown"."""
        return self.report.status

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.report.findings

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the stress test."""
        return self.stress is not None and self.snapshot.scope().look_up("stress.ended") == "interrupted"

    @property
    def exit_code(self) -> ExitCode:
        if self.is_interrupted:
            return ExitCode.INTERRUPTED
        return code_of_status(self.report.status, self.strict, self.faults)

    def document(self) -> dict[str, Any]:
        document = {"schema_version": SCHEMA_VERSION, **plain(self.report.document())}
        document |= {} if self.stress is None else {"stress": plain(to_document(self.stress))}
        return document | ({"snapshot": plain(self.snapshot.document())} if self.with_snapshot else {})


def doctor(
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    site: StrPath | None = None,
    strict: bool = False,
    sample_s: float = 0.0,
    stress: StressLevel | None = None,
    imports_project: bool = False,
    root: StrPath | None = None,
    record: StrPath | None = None,
    replay: StrPath | None = None,
    html: StrPath | None = None,
    with_snapshot: bool = False,
) -> NodeHealth:
    """Check the health of this machine. The verdict is bad if it is unhealthy.

    Args:
        only: rules or families to evaluate, such as "nvidia" or "disk.*".
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.
        strict: the verdict is also bad if there are warnings.
        sample_s: seconds between two readings, from which rates are computed.
        stress: also load every device: "quick" for about a minute, "full" for several. Ctrl-C ends the test early.
        imports_project: also import the project's own task, to check its configuration in full.
        root: a folder with the copy of a machine's files, to read instead of this machine.
        record: save all that was read to this file.
        replay: a file that `record` wrote, to evaluate instead of this machine.
        html: write the report to this file, as one web page.
        with_snapshot: add all that was read to the result's document.

    Example:
        >>> health = aifx.doctor(only=["memory"])
        >>> {finding.id.partition(".")[0] for finding in health.findings} <= {"memory"}
        True
    """
    from aifx.health.check import check
    from aifx.health.rules import load_rules, read_site, select

    began, sites = time.monotonic(), read_site(path_of(site))
    rules = select(load_rules(sites).values(), only, skip)
    given = {"--root": root, "--record": record, "--sample": sample_s, "--stress": stress, "--project": imports_project}
    options = [option for option, value in given.items() if value]
    if replay is not None:
        snapshot = _replayed(Path(replay), options)
    else:
        from aifx.health.check import collect
        from aifx.health.host import Host, open_copy

        if root is not None and (wrong := next((o for o in options if o in ("--stress", "--project")), None)):
            why = f"{root} holds a copy of files, and {wrong} needs the machine itself"
            raise UsageError(f"{wrong} cannot be used with --root", why, f"aifx doctor --root {root}")
        host = Host(imports_project=imports_project) if root is None else open_copy(Path(root))
        snapshot = collect(host, rules, sample_s, stress)
    report = check(snapshot, rules, sites, began)
    ids = tuple(rule.id for rule in rules)
    faults = _save(snapshot, report, ids, path_of(record), path_of(html))
    if replay is None:
        leave_doctor_report(report.document(), "doctor node")
    measured = None if stress is None else snapshot.facts["stress"]
    return NodeHealth(report, ids, snapshot, measured, tuple(faults), strict, with_snapshot)


def _replayed(file: Path, options: Sequence[str]) -> Snapshot:
    """Read a snapshot. Raises UsageError for a fleet's record, and for options that determine how a machine is read."""
    from aifx.health.fleet.record import is_record
    from aifx.health.snapshot import read

    if is_record(file):
        hint = f"aifx doctor fleet --replay {file}"
        raise UsageError(f"{file} is the record of a fleet", "this command checks one node", hint)
    if options:
        why = "a replay reads the file and measures no machine"
        raise UsageError(f"{options[0]} cannot be used with --replay", why, f"aifx doctor --replay {file}")
    return read(file)


def _save(
    snapshot: Snapshot, report: Report, ids: Sequence[str], record: Path | None, html: Path | None
) -> list[EnvironmentFault]:
    """Write the requested files. Return the failures: the report counts even if a file could not be written."""
    faults = []
    if record is not None:
        from aifx.health.snapshot import write

        try:
            write(snapshot, record)
        except EnvironmentFault as fault:
            faults.append(fault)
        except OSError as error:
            what, why = f"{record} cannot be written", error.strerror or str(error)
            faults.append(EnvironmentFault(what, why, "aifx doctor --record ANOTHER_FILE"))
    if html is not None:
        from aifx.core.pages import write_page
        from aifx.health.page import node_page

        try:
            write_page(node_page(report, ids, snapshot.time), html)
        except EnvironmentFault as fault:
            faults.append(fault)
    return faults


@dataclass(frozen=True)
class SnapshotComparison(Result):
    """The differences between two snapshots; `strict` makes any new finding a bad verdict."""

    difference: Difference
    strict: bool = False

    @property
    def exit_code(self) -> ExitCode:
        is_bad = self.difference.worse if self.strict else self.difference.new_critical
        return ExitCode.VERDICT if is_bad else ExitCode.OK

    def document(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **plain(self.difference)}


def doctor_diff(
    before: StrPath, after: StrPath, *, strict: bool = False, site: StrPath | None = None
) -> SnapshotComparison:
    """Compare two snapshots: the findings and facts that came, went and changed.

    The verdict is bad if the second one has a new critical finding.

    Args:
        before: file that `aifx.doctor(record=...)` wrote.
        after: a later one, or one of a machine that should be equal.
        strict: the verdict is bad for any new finding.
        site: the site's file; by default the one that `aifx doctor` reads.

    Example:
        >>> aifx.doctor(only=["memory"], record="monday.json").faults
        ()
        >>> aifx.doctor_diff("monday.json", "monday.json").difference.came
        ()
    """
    from aifx.health.diff import diff
    from aifx.health.rules import load_rules, read_site
    from aifx.health.snapshot import read

    sites = read_site(path_of(site))
    found = diff(read(Path(before)), read(Path(after)), load_rules(sites).values(), sites)
    return SnapshotComparison(found, strict)


@dataclass(frozen=True)
class ListedRules(Result):
    """Rules, and the ids of those that the site's file added or changed."""

    rules: tuple[Rule, ...]
    changed: frozenset[str]

    def document(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "rules": [rule.model_dump(mode="json") for rule in self.rules]}


def doctor_rules(name: str | None = None, *, site: StrPath | None = None) -> ListedRules:
    """List the rules of the doctor.

    Args:
        name: of a rule, or of a family of rules; by default all of them.
        site: the site's file; by default the one that `aifx doctor` reads.

    Example:
        >>> aifx.doctor_rules("nvidia.rows.pending").rules[0].severity
        'critical'
    """
    from aifx.health.rules import load_rules, read_site, select

    sites = read_site(path_of(site))
    chosen = select(load_rules(sites).values(), [name] if name else [], [])
    changed = {*sites.rules, *(str(own.get("id")) for own in sites.rule)}
    return ListedRules(tuple(chosen), frozenset(changed))


@dataclass(frozen=True)
class AgentStarted(Result):
    """The address of an agent, and whether its clients must send a token."""

    url: str
    has_token: bool


def doctor_serve(
    *,
    bind: str = "127.0.0.1",
    port: int = 9470,
    interval_s: float = 60.0,
    token_file: StrPath | None = None,
    tls_cert: StrPath | None = None,
    tls_key: StrPath | None = None,
    insecure: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    site: StrPath | None = None,
) -> RunningServer[AgentStarted]:
    """Serve this machine's health over HTTP: /healthz, /v1/report, and /metrics for Prometheus.

    The check runs if a client asks and the last check is older than the interval. All but /healthz ask for the token.

    Args:
        bind: address to listen at.
        port: to listen at; 0 takes a free one.
        interval_s: least seconds between two checks.
        token_file: file with the token; by default $AIFX_DOCTOR_TOKEN.
        tls_cert: file with a certificate, to serve with TLS.
        tls_key: file with the certificate's key.
        insecure: answer other machines without a token.
        only: rules or families to evaluate.
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.

    Example:
        >>> with aifx.doctor_serve(port=0, only=["memory"]) as agent:
        ...     agent.url.startswith("http://127.0.0.1:")
        True
    """
    from aifx.core.web.policy import is_loopback
    from aifx.core.web.server import bind as bind_socket
    from aifx.core.web.server import url_of
    from aifx.health.agent import Checks, open_agent
    from aifx.health.agent_token import read_token, server_tls
    from aifx.health.check import repeatable_check

    token = read_token(path_of(token_file))
    if not (token or insecure or is_loopback(bind)):
        why = "other machines can reach this address, and could read this node's report"
        hint = "aifx doctor serve --token-file FILE, or --insecure"
        raise UsageError(f"--bind {bind} requires a token", why, hint)
    checks = Checks(repeatable_check(only, skip, path_of(site)), interval_s)
    tls = server_tls(path_of(tls_cert), path_of(tls_key))
    hints = {"port_hint": "aifx doctor serve --port 0", "host_hint": "aifx doctor serve --bind 127.0.0.1"}
    bound = bind_socket(bind, port, **hints, listen=True)
    started = AgentStarted(url_of(bound, "http" if tls is None else "https"), bool(token))
    return RunningServer(open_agent(checks, bound, token, tls), started, ExitStack(), lambda ending: None)
