"""`aifx doctor --hosts | --slurm | --agents`: many nodes at once (docs/doctor-fleet.md)."""

from __future__ import annotations

import asyncio
import shlex
import signal
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from aifx.commands.console import stopping
from aifx.commands.console.terminal import Output
from aifx.commands.doctor.bisect import BUDGET_S, bisect_fleet, show_search
from aifx.commands.doctor.options import exit_code
from aifx.core.errors import EnvironmentFault, ExitCode, UsageError

if TYPE_CHECKING:
    from aifx.health.fleet.record import Recorder
    from aifx.health.fleet.report import Node
    from aifx.health.fleet.transports import Question
    from aifx.health.rules import Site

TOKEN = "AIFX_DOCTOR_TOKEN"
FLEET = "A fleet"
OF_A_FLEET = {
    "--timeout", "--at-once", "--remote", "--token-file", "--insecure-token", "--tls-ca", "--bisect", "--budget",
}  # fmt: skip
LIMITS_S = {None: 30.0, "quick": 300.0, "full": 1800.0}
"""Time for a node, by how hard it is worked."""

HostsOption = Annotated[
    Path | None,
    typer.Option(
        "--hosts",
        metavar="FILE",
        help="Check the nodes of this list, one a line (n[001-128] is 128 of them), over ssh.",
        show_default=False,
        rich_help_panel=FLEET,
    ),
]
SlurmOption = Annotated[bool, typer.Option("--slurm", help="Check the nodes of this Slurm allocation, with srun.")]
AgentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agents",
        metavar="URL",
        help="Check the nodes where `aifx doctor serve` listens. Can be repeated; a --hosts list can hold them too.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Time for each node; 30.", show_default=False),
]
AtOnceOption = Annotated[
    int | None,
    typer.Option("--at-once", metavar="N", min=1, help="Nodes asked at a time; 64, agents 256.", show_default=False),
]
RemoteOption = Annotated[str, typer.Option("--remote", metavar="COMMAND", help="How aifx is called on the nodes.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help=f"Holds the agents' token; else ${TOKEN}.", show_default=False),
]
InsecureTokenOption = Annotated[
    bool,
    typer.Option("--insecure-token", help="Send the token to other machines without TLS, too."),
]
AuthorityOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="Who signed the agents' certificates.", show_default=False),
]
BisectOption = Annotated[
    bool,
    typer.Option(
        "--bisect", help="Then find the bad node or link with collective tests over halves of them. It loads the nodes."
    ),
]
BudgetOption = Annotated[
    float, typer.Option("--budget", metavar="SECONDS", min=0, help="Time for --bisect.", show_default="900")
]


@dataclass(frozen=True)
class FleetOptions:
    """The options that say which nodes are asked, and how."""

    hosts: Path | None = None
    slurm: bool = False
    agents: Sequence[str] = ()
    timeout: float | None = None
    at_once: int | None = None
    remote: str = "aifx"
    token_file: Path | None = None
    insecure_token: bool = False
    tls_ca: Path | None = None
    bisect: bool = False
    budget: float = BUDGET_S
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    sample: float = 0.0
    stress: str | None = None

    @property
    def is_fleet(self) -> bool:
        return self.hosts is not None or self.slurm or bool(self.agents)

    def command(self) -> tuple[str, ...]:
        """What is run on a node."""
        words = [*shlex.split(self.remote), "doctor", "--json", "--with-snapshot"]
        for option, patterns in (("--only", self.only), ("--skip", self.skip)):
            words += [word for pattern in patterns if not _is_across(pattern) for word in (option, pattern)]
        words += ["--sample", f"{self.sample:g}"] if self.sample else []
        return (*words, *(["--stress", self.stress] if self.stress else []))

    def question(self, agents: Sequence[str] = ()) -> Question:
        """The question to nodes, or to `agents`. Raises UsageError if one of these could leak the token."""
        from aifx.commands.doctor.serve import read_token
        from aifx.health.fleet.transports import Question

        limit_s = (LIMITS_S[self.stress] + self.sample) if self.timeout is None else self.timeout
        at_once = self.at_once or (256 if agents else 64)
        if not agents:
            return Question(limit_s, at_once, self.command())
        token = read_token(self.token_file)
        if token and not self.insecure_token and (open_ := next((url for url in agents if not is_private(url)), None)):
            raise UsageError(
                f"the token would go to {open_} unencrypted",
                "anybody on the way could read it and show it to every agent",
                f"--agents {open_.replace('http', 'https', 1)}, or --insecure-token",
            )
        return Question(limit_s, at_once, token=token, tls=_tls(self.tls_ca))


def is_private(url: str) -> bool:
    """Whether nobody on the way to `url` can read what is sent there."""
    import httpx  # the same reading of the URL that connects: others find another host in http://127.0.0.1\\@n1

    from aifx.health.agent import is_loopback

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return True  # nothing is sent there
    return parsed.scheme == "https" or is_loopback(parsed.host)


def _is_across(pattern: str) -> bool:
    """Whether a pattern means findings across nodes, of which a node knows nothing."""
    return pattern == "fleet" or pattern.startswith("fleet.")


def _tls(authority: Path | None) -> ssl.SSLContext | None:
    if authority is None:
        return None
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"--tls-ca {authority} cannot be used", why, "a PEM file is needed") from None


@dataclass(frozen=True)
class Targets:
    """Nodes by the way they are asked, each once."""

    ssh: tuple[str, ...] = ()
    slurm: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.ssh, *self.slurm, *self.agents]))


def targets_of(options: FleetOptions) -> Targets:
    """Raises UsageError."""
    from aifx.health.fleet.hosts import is_address, read_hosts, slurm_hosts

    for url in options.agents:
        if not is_address(url):
            raise UsageError(
                f"--agents {url} is no URL",
                "it needs http:// or https://",
                f"--agents http://{url.rpartition('//')[2]}",
            )
    listed = read_hosts(options.hosts) if options.hosts is not None else []
    slurm = slurm_hosts() if options.slurm else []
    agents = dict.fromkeys([*options.agents, *filter(is_address, listed)])
    if agents and (options.stress or options.sample):
        raise UsageError("agents run no --stress and no --sample", "they tell what they have", "ask over ssh: --hosts")
    ssh = [host for host in listed if not is_address(host) and host not in slurm]
    if options.bisect:
        if agents:
            why = "agents report and run nothing"
            raise UsageError(f"{next(iter(agents))} cannot be tested by --bisect", why, "name its host, for ssh")
        if ssh and slurm:
            raise UsageError("--bisect over ssh and srun at once", "one of them starts all ranks", "--hosts or --slurm")
        if len(ssh) + len(slurm) < 2:
            raise UsageError("--bisect of one node", "a collective needs two", "aifx doctor --stress quick")
    return Targets(tuple(ssh), tuple(slurm), tuple(agents))


def ask(out: Output, options: FleetOptions, record: Path | None = None) -> tuple[list[Node], list[str], ExitCode]:
    """The nodes that were heard, those that were not because it was ended (Ctrl-C, SIGTERM), and the code for that."""
    code = ExitCode.OK
    targets = targets_of(options)
    questions = options.question(), options.question(targets.agents)
    found: dict[str, Node] = {}
    recorder = _recorder(record, targets.all)
    with _progress(out, targets, found) as told:

        def heard(node: Node, document: Any) -> None:
            nonlocal recorder
            found[node.name] = node
            told()
            if recorder is not None:
                try:
                    recorder.take(node, document)
                except OSError as error:  # the report is worth more than its record
                    out.say(f"{record} is not complete: {error.strerror or error}")
                    recorder = None

        try:
            asyncio.run(_ask(targets, *questions, heard))
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except asyncio.CancelledError:  # how `_ask` ends on SIGTERM
            code = ExitCode.PREEMPTED
        stopping.run_body()  # asyncio leaves SIGTERM to the system
    if recorder is not None:
        recorder.close()
    return [found[name] for name in targets.all if name in found], [n for n in targets.all if n not in found], code


async def _ask(targets: Targets, of_nodes: Question, of_agents: Question, heard: Any) -> None:
    from aifx.health.fleet.transports import ask_agents, ask_slurm, ask_ssh

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    ways = []
    if targets.ssh:
        ways.append(ask_ssh(targets.ssh, of_nodes, heard))
    if targets.slurm:
        ways.append(ask_slurm(targets.slurm, of_nodes, heard))
    if targets.agents:
        ways.append(ask_agents(targets.agents, of_agents, heard))
    await asyncio.gather(*ways)


def _recorder(path: Path | None, asked: Sequence[str]) -> Recorder | None:
    if path is None:
        return None
    from aifx.health.fleet.record import Recorder

    try:
        return Recorder(path, asked)
    except OSError as error:
        why = error.strerror or str(error)
        raise EnvironmentFault(f"{path} cannot be written", why, "aifx doctor --record ANOTHER_FILE") from None


@contextmanager
def _progress(out: Output, targets: Targets, found: dict[str, Node]) -> Iterator[Any]:
    """How many have been heard: moving on a terminal, else one line."""
    count = len(targets.all)

    def words() -> str:
        told = Counter("silent" if n.is_silent else "report" if n.report else "no report" for n in found.values())
        parts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(told.items()))
        return f"{len(found):,} of {count:,} nodes{': ' if parts else ''}{parts}"

    if not out.animated:
        out.say(f"asking {count:,} node{'s' * (count != 1)}")
        yield lambda: None
        return
    with out.err.status(words()) as status:
        yield lambda: status.update(words())


def is_asked(ctx: typer.Context, options: FleetOptions, replay: Path | None) -> bool:
    """Whether the command line means a fleet. Raises UsageError for options that do not go together."""
    from aifx.health.fleet.record import is_record

    given = {p.opts[0] for p in ctx.command.params if _is_given(ctx, p.name or "")}
    of_fleet = OF_A_FLEET & given
    is_replay = replay is not None and is_record(replay)
    if not (options.is_fleet or is_replay):
        if of_fleet:
            raise UsageError(f"{min(of_fleet)} is for a fleet", "no nodes were named", "--hosts, --slurm or --agents")
        return False
    wrong = {"--root", "--format", "--with-snapshot"} & given
    wrong |= of_fleet | {"--record", "--sample", "--stress"} & given if is_replay else set()
    wrong |= {"--replay"} if options.is_fleet and replay is not None else set()
    if wrong:
        raise UsageError(
            f"{min(wrong)} does not go with {'the record of a fleet' if is_replay else 'a fleet'}",
            "it is for one node, or for asking a fleet",
            "docs/doctor-fleet.md",
        )
    if "--budget" in given and not options.bisect:
        raise UsageError("--budget is for --bisect", "it is not asked for", "--bisect --budget SECONDS")
    return True


def _is_given(ctx: typer.Context, name: str) -> bool:
    return ctx.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]


def check_fleet(
    out: Output,
    options: FleetOptions,
    site: Site,
    *,
    strict: bool,
    record: Path | None,
    replay: Path | None,
    html: Path | None,
) -> NoReturn:
    """Asks, judges and tells. Ends the command: 0, 1 or 2 as for a node, 130 or 75 where it was ended."""
    from aifx.commands.doctor.fleet_report import show_fleet
    from aifx.health.fleet.assess import assess
    from aifx.health.fleet.record import read_record

    _know([*options.only, *options.skip], site)
    began = time.monotonic()
    nodes, not_heard, ended = (*read_record(replay), ExitCode.OK) if replay is not None else ask(out, options, record)
    search = None
    if options.bisect and not ended:
        search, ended = bisect_fleet(
            out, nodes, over_slurm=options.slurm, remote=options.remote, budget_s=options.budget
        )
    report = assess(
        nodes,
        site,
        only=options.only,
        skip=options.skip,
        not_heard=not_heard,
        tested=search.findings() if search else (),
        duration_s=time.monotonic() - began,
    )
    faults = []
    if html is not None:
        from aifx.core.pages import write_page
        from aifx.health.page import fleet_page

        try:
            write_page(fleet_page(report, time.time()), html)
        except EnvironmentFault as fault:
            faults.append(fault)
    out.document(report.document() | ({"bisect": search.document()} if search else {}))
    show_fleet(out, report)
    if search and not out.json:
        out.print("")
        show_search(out, search, sum(node.report is not None for node in nodes))
    out.tell(faults)
    raise SystemExit(int(ended) or exit_code(report.status, strict, faults))


def _know(patterns: Sequence[str], site: Site) -> None:
    """Raises UsageError for a pattern that fits no finding, of nodes or across them."""
    from aifx.health.fleet.assess import fleet_ids
    from aifx.health.rules import fits, load_rules, select

    rules = load_rules(site).values()
    select(rules, [p for p in patterns if not any(fits(name, p) for name in fleet_ids())], ())
