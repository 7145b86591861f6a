"""The health of many machines at once, and searches for slow ones among them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aifx.core.errors import EnvironmentFault, ExitCode, UsageError
from aifx.core.json_values import plain
from aifx.core.lifecycle import exit_code_of
from aifx.core.plurals import counted
from aifx.core.results import SCHEMA_VERSION, Result
from aifx.health.fleet.report import FleetReport, Node, NodeGroup, Suspect, grouped
from aifx.health.report import Report
from aifx.lines.reports import leave_doctor_report
from aifx.verbs.arguments import StrPath
from aifx.verbs.health import StressLevel, code_of_status, path_of

if TYPE_CHECKING:
    from aifx.health.bisect import BisectResult
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.ask import Answers, Targets
    from aifx.health.fleet.transports import Inquiry

logger = logging.getLogger(__name__)

BUDGET_S = 900.0
DELAY_FORM = "--rehearse n3=0.02, or n1,n5=0.02 for a link"


@dataclass(frozen=True)
class FleetHealth(Result):
    """The health of many machines.

    Attributes:
        report: the findings and the suspects.
        search: the search for slow nodes and links, if one was asked for.
        faults: failures to write the requested files.
        code: exit code.
    """

    report: FleetReport
    search: BisectResult | None = None
    faults: tuple[EnvironmentFault, ...] = ()
    code: ExitCode = ExitCode.OK

    @property
    def status(self) -> str:
        """ "healthy", "warning", "unhealthy" or "unknown"."""
        return self.report.status

    @property
    def exit_code(self) -> ExitCode:
        return self.code

    def document(self) -> dict[str, Any]:
        document = self.report.document() | ({"bisect": self.search.document()} if self.search else {})
        return {"schema_version": SCHEMA_VERSION, **plain(document)}


def doctor_fleet(
    *,
    hosts: StrPath | None = None,
    slurm: bool = False,
    agents: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    site: StrPath | None = None,
    strict: bool = False,
    sample_s: float = 0.0,
    stress: StressLevel | None = None,
    bisect: bool = False,
    budget_s: float | None = None,
    timeout_s: float | None = None,
    at_once: int | None = None,
    remote: str = "aifx",
    token_file: StrPath | None = None,
    insecure_token: bool = False,
    tls_ca: StrPath | None = None,
    record: StrPath | None = None,
    replay: StrPath | None = None,
    html: StrPath | None = None,
    stop: Sequence[int] = (),
) -> FleetHealth:
    """Check many machines at once, compare them, and rank the suspects. The verdict is bad if one is unhealthy.

    Args:
        hosts: file with the nodes to reach over ssh: one per line, or n[001-128] for 128 nodes.
        slurm: reach the nodes of this Slurm allocation with srun.
        agents: URLs at which `aifx doctor serve` listens.
        only: rules or families to include, of nodes and across nodes.
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.
        strict: the verdict is also bad if there are warnings.
        sample_s: seconds between two readings of each node, from which rates are computed.
        stress: also load every device: "quick" for about a minute, "full" for several.
        bisect: also find the bad node or link with collective tests. They load the nodes' network.
        budget_s: most seconds for the collective tests; by default 900.
        timeout_s: most seconds for each node; by default 30, and more with a stress test.
        at_once: nodes to ask at a time; by default 64, and 256 agents.
        remote: command that runs aifx on the nodes.
        token_file: file with the agents' token; by default $AIFX_DOCTOR_TOKEN.
        insecure_token: send the token to other machines also without TLS.
        tls_ca: file with the certificates of authorities to trust.
        record: save the nodes' answers to this file.
        replay: a file that `record` wrote, to evaluate instead of asking nodes.
        html: write the report to this file, as one web page.
        stop: numbers of signals. As soon as it has one, the report is made of what has arrived.

    Example:
        >>> aifx.doctor_fleet(agents=["http://127.0.0.1:1"]).status
        'unhealthy'
    """
    from aifx.health.fleet.assess import assess, check_patterns
    from aifx.health.rules import read_site

    began, sites = time.monotonic(), read_site(path_of(site))
    check_patterns([*only, *skip], sites)
    asking = {
        "--sample": bool(sample_s),
        "--stress": stress is not None,
        "--record": record is not None,
        "--hosts": hosts is not None,
        "--slurm": slurm,
        "--agents": bool(agents),
        "--bisect": bisect,
        "--budget": budget_s is not None,
        "--timeout": timeout_s is not None,
        "--at-once": at_once is not None,
        "--remote": remote != "aifx",
        "--token-file": token_file is not None,
        "--insecure-token": insecure_token,
        "--tls-ca": tls_ca is not None,
    }
    if replay is not None:
        answers = _recorded(Path(replay), next((option for option, is_given in asking.items() if is_given), None))
    else:
        from aifx.health.agent_token import read_authority, read_token
        from aifx.health.fleet.ask import split_remote
        from aifx.health.fleet.transports import Inquiry

        if budget_s is not None and not bisect:
            raise UsageError("--budget requires --bisect", "", f"--bisect --budget {budget_s:g}")
        targets = _targets(hosts, slurm, agents, is_tested=bisect)
        inquiry = Inquiry(
            only=only,
            skip=skip,
            sample_s=sample_s,
            stress=stress,
            timeout_s=timeout_s,
            at_once=at_once,
            remote=split_remote(remote),
            token=read_token(path_of(token_file)),
            insecure_token=insecure_token,
            tls=read_authority(path_of(tls_ca)),
        )
        answers = _ask(targets, inquiry, path_of(record), stop)
    search, ended = None, ExitCode.OK
    if answers.ended_by is not None:
        ended = exit_code_of(answers.ended_by)
    elif bisect:
        search, ended = search_among(answers.nodes, slurm, remote, BUDGET_S if budget_s is None else budget_s, stop)
    report = assess(
        answers.nodes,
        sites,
        only=only,
        skip=skip,
        unanswered=answers.unanswered,
        tested=search.findings() if search else (),
        duration_s=time.monotonic() - began,
    )
    faults = _save(report, path_of(html))
    if replay is None:
        leave_doctor_report(report.document(), "doctor fleet")
    return FleetHealth(report, search, tuple(faults), ended or code_of_status(report.status, strict, faults))


def _targets(hosts: StrPath | None, slurm: bool, agents: Sequence[str] = (), *, is_tested: bool) -> Targets:
    from aifx.health.fleet.ask import check_testable, find_targets

    targets = find_targets(path_of(hosts), slurm=slurm, agents=agents)
    if is_tested:
        check_testable(targets)
    return targets


def _recorded(file: Path, wrong: str | None) -> Answers:
    from aifx.health.fleet.ask import Answers
    from aifx.health.fleet.record import read_record

    if wrong is not None:
        why = "a replay evaluates recorded answers and asks no node"
        raise UsageError(f"{wrong} cannot be used with --replay", why, f"aifx doctor fleet --replay {file}")
    return Answers(*read_record(file))


def _ask(targets: Targets, inquiry: Inquiry, record: Path | None, stop: Sequence[int]) -> Answers:
    from aifx.health.fleet.ask import ask

    logger.info("asking %s", counted(len(targets.all), "node"))
    return ask(targets, inquiry, record, stop)


def _save(report: FleetReport, html: Path | None) -> list[EnvironmentFault]:
    """Write the page. Return the failure: the report counts even if the page could not be written."""
    if html is None:
        return []
    from aifx.core.pages import write_page
    from aifx.health.page import fleet_page

    try:
        write_page(fleet_page(report, time.time()), html)
    except EnvironmentFault as fault:
        return [fault]
    return []


@dataclass(frozen=True)
class SearchedNodes(Result):
    """The result of a search for slow nodes and links.

    Attributes:
        result: the tests, and what is slow.
        num_nodes: among which was searched.
        code: exit code.
    """

    result: BisectResult
    num_nodes: int
    code: ExitCode = ExitCode.OK

    @property
    def report(self) -> Report:
        return Report("", self.result.findings(), (), round(self.result.duration_s, 3))

    @property
    def exit_code(self) -> ExitCode:
        return self.code or code_of_status(self.report.status, strict=False)

    def document(self) -> dict[str, Any]:
        report = self.report
        findings = [asdict(finding) for finding in report.findings]
        document = {"status": report.status, "findings": findings, **self.result.document()}
        return {"schema_version": SCHEMA_VERSION, **plain(document)}


def doctor_bisect(
    *,
    hosts: StrPath | None = None,
    slurm: bool = False,
    budget_s: float = BUDGET_S,
    limit_s: float = 120.0,
    expected_gb_s: float = 0.0,
    margin: float = 0.2,
    over: Literal["jax", "tcp"] = "jax",
    num_bytes: int = 64 << 20,
    rehearse: Sequence[str] = (),
    remote: str = "aifx",
    stop: Sequence[int] = (),
) -> SearchedNodes:
    """Find the bad node or link with collective tests over halves of the nodes. The tests load them.

    The verdict is bad if a node or a link is slow.

    Args:
        hosts: file with the nodes to reach over ssh.
        slurm: reach the nodes of this Slurm allocation with srun.
        budget_s: most seconds for all tests.
        limit_s: most seconds for one test.
        expected_gb_s: bus bandwidth that all nodes together should reach; 0 if it is unknown.
        margin: a group is slow if it is slower by this share than the fastest group of its size.
        over: test the devices ("jax", through NCCL) or only the hosts' network ("tcp").
        num_bytes: size of each device's buffer.
        rehearse: delay each message of a node, "n3=0.02", or over a link, "n1,n5=0.02", to see that it is found.
        remote: command that runs aifx on the nodes.
        stop: numbers of signals. As soon as it has one, the result is what was found until then.

    Example:
        >>> aifx.doctor_bisect()
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.ask import split_remote

    targets = _targets(hosts, slurm, is_tested=True)
    faults = _delays(rehearse, targets.all, over)
    program = split_remote(remote)
    tests = Options(program, slurm, over, num_bytes, limit_s=limit_s, faults=faults, stop=stop)
    result, ended = _search(targets.all, tests, budget_s, expected_gb_s, margin)
    found = SearchedNodes(result, len(targets.all), ended)
    if not rehearse:
        leave_doctor_report(found.document(), "doctor bisect")
    return found


def search_among(
    nodes: Sequence[Node], over_slurm: bool, remote: str, budget_s: float, stop: Sequence[int] = ()
) -> tuple[BisectResult, ExitCode]:
    """Search among the nodes that sent a report. Return also the code of a signal that ended the search."""
    from aifx.health.bisect import MARGIN, BisectResult
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.ask import split_remote
    from aifx.health.fleet.rank import gpus_of

    names = [node.name for node in nodes if node.report is not None]
    if len(names) < 2:
        return BisectResult((), tuple(names), "unclear", "fewer than two nodes sent a report", (), 0.0), ExitCode.OK
    tests = Options(split_remote(remote), over_slurm, "jax" if any(map(gpus_of, nodes)) else "tcp", stop=stop)
    return _search(names, tests, budget_s, 0.0, MARGIN)


def _search(
    nodes: Sequence[str], tests: Options, budget_s: float, expected_gb_s: float, margin: float
) -> tuple[BisectResult, ExitCode]:
    """Search until a signal at the latest, and return what was found until then."""
    from aifx.health import bisect
    from aifx.health.collective_launch import run_test

    test = partial(run_test, options=tests)
    result = bisect.bisect(nodes, test, budget_s, expected_gb_s=expected_gb_s, margin=margin)
    if result.why != "interrupted":
        return result, ExitCode.OK
    return result, exit_code_of(tests.stop[0]) if tests.stop else ExitCode.INTERRUPTED


def _delays(asked: Sequence[str], nodes: Sequence[str], over: str) -> dict[tuple[str, ...], float]:
    """Return the seconds by which each named node or link is delayed."""
    found = {}
    for text in asked:
        names, _, seconds = text.rpartition("=")
        group = tuple(names.split(","))
        if not names or len(group) > 2 or set(group) - set(nodes):
            why = f"the nodes are {', '.join(nodes[:8])}{', ...' if nodes[8:] else ''}"
            raise UsageError(f"--rehearse {text} does not name a node or link", why, DELAY_FORM)
        if len(group) == 2 and over == "jax":
            why = "through JAX only a node can be delayed"
            raise UsageError(f"--rehearse {text} requires --over tcp", why, DELAY_FORM)
        try:
            found[group] = float(seconds)
        except ValueError:
            why = f"{seconds!r} is not a number"
            raise UsageError(f"--rehearse {text} does not name a delay", why, DELAY_FORM) from None
    return found


def run_collective_rank(request: str) -> int:
    """Run one rank of a collective test, which `request` describes, and return its exit code."""
    from aifx.health.collective_worker import main

    return main(request)
