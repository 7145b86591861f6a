"""A fleet's nodes, asked for their reports all at once, each in the way that its name says."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aifx.core.errors import EnvironmentFault, UsageError
from aifx.health.agent_token import is_private
from aifx.health.fleet.hosts import is_address, read_hosts, slurm_hosts
from aifx.health.fleet.record import Recorder
from aifx.health.fleet.report import Node
from aifx.health.fleet.transports import Question, ask_agents, ask_slurm, ask_ssh

LIMITS_S = {None: 30.0, "quick": 300.0, "full": 1800.0}
"""Time for a node, by its stress test."""
AT_ONCE, AGENTS_AT_ONCE = 64, 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """The nodes of a fleet by the way in which they are asked, each once."""

    ssh: tuple[str, ...] = ()
    slurm: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.ssh, *self.slurm, *self.agents]))


def find_targets(hosts: Path | None, *, slurm: bool = False, agents: Iterable[str] = ()) -> Targets:
    """Return the nodes of a list, of the Slurm allocation, and of agents' addresses. Raises UsageError."""
    for url in agents:
        if not is_address(url):
            hint = f"--agents http://{url.rpartition('//')[2]}"
            raise UsageError(f"--agents {url} is not a URL", "it must begin with http:// or https://", hint)
    listed = read_hosts(hosts) if hosts is not None else []
    allocated = slurm_hosts() if slurm else []
    ssh = [host for host in listed if not is_address(host) and host not in allocated]
    addresses = dict.fromkeys([*agents, *filter(is_address, listed)])
    targets = Targets(tuple(ssh), tuple(allocated), tuple(addresses))
    if not targets.all:
        raise UsageError("no nodes are named", "", "aifx doctor fleet --hosts FILE, or --slurm, or --agents URL")
    return targets


def split_remote(remote: str) -> list[str]:
    """Return the words of the command that runs aifx on a node. Raises UsageError."""
    try:
        words, why = shlex.split(remote), "it is empty"
    except ValueError as error:
        words, why = [], str(error)
    if not words:
        raise UsageError(f"--remote {remote!r} is not a command", why, "--remote /opt/aifx/bin/aifx")
    return words


def check_testable(targets: Targets) -> None:
    """Raises UsageError for nodes among which no collective test can run."""
    if targets.agents:
        why = "an agent reports its node's health and runs no tests"
        raise UsageError(f"{targets.agents[0]} cannot run a collective test", why, "list its host, for ssh")
    if targets.ssh and targets.slurm:
        why = "either ssh or srun starts all ranks of a test"
        raise UsageError("collective tests cannot mix --hosts and --slurm", why, "use one of them")
    if len(targets.all) < 2:
        why = "a collective test needs two nodes"
        raise UsageError(f"{targets.all[0]} cannot be tested alone", why, "aifx doctor --stress quick")


@dataclass(frozen=True)
class Inquiry:
    """What a fleet is asked, and how.

    Attributes:
        only, skip: the rules that each node evaluates.
        sample_s: the time between two readings on a node.
        stress: the stress test that each node runs.
        timeout_s: how long a node may take; None for the usual time.
        at_once: how many nodes are asked at a time; None for the usual number.
        remote: the command that runs aifx on a node.
        token: what agents are shown; empty for none.
        insecure_token: whether the token may be sent without TLS.
        tls: whom agents must be signed by; None for the system's authorities.
    """

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    sample_s: float = 0.0
    stress: Literal["quick", "full"] | None = None
    timeout_s: float | None = None
    at_once: int | None = None
    remote: str = "aifx"
    token: str = ""
    insecure_token: bool = False
    tls: ssl.SSLContext | None = None

    def command(self) -> tuple[str, ...]:
        """Return the command that a node runs."""
        words = [*split_remote(self.remote), "doctor", "node", "--json", "--with-snapshot"]
        for option, patterns in (("--only", self.only), ("--skip", self.skip)):
            words += [word for pattern in patterns if not _is_across(pattern) for word in (option, pattern)]
        words += ["--sample", f"{self.sample_s:g}"] if self.sample_s else []
        return (*words, *(["--stress", self.stress] if self.stress else []))

    def question(self) -> Question:
        """Return the question to nodes that run a command."""
        return Question(self._timeout_s(), self.at_once or AT_ONCE, self.command())

    def question_to_agents(self, agents: Sequence[str]) -> Question:
        """Raises UsageError if one of the agents' addresses could leak the token, or for what no agent does."""
        if agents and (self.stress or self.sample_s):
            option = "--stress" if self.stress else "--sample"
            why = "an agent sends its last report and runs nothing"
            raise UsageError(f"{option} cannot be used with agents", why, "ask over ssh: --hosts FILE")
        open_ = next((url for url in agents if not is_private(url)), None) if self.token else None
        if open_ and not self.insecure_token:
            raise UsageError(
                f"the token would go to {open_} unencrypted",
                "anybody on the way could read it, and show it to every agent",
                f"--agents {open_.replace('http', 'https', 1)}, or --insecure-token",
            )
        return Question(self._timeout_s(), self.at_once or AGENTS_AT_ONCE, token=self.token, tls=self.tls)

    def _timeout_s(self) -> float:
        return (LIMITS_S[self.stress] + self.sample_s) if self.timeout_s is None else self.timeout_s


def _is_across(pattern: str) -> bool:
    """Return whether a pattern means findings across nodes, which a node knows nothing of."""
    return pattern == "fleet" or pattern.startswith("fleet.")


@dataclass(frozen=True)
class Answers:
    """Attributes:
    nodes: those that were heard, in the order in which they were named.
    not_heard: those that a signal left unheard.
    ended_by: the signal that ended the asking; None if it ended by itself.
    """

    nodes: tuple[Node, ...]
    not_heard: tuple[str, ...] = ()
    ended_by: signal.Signals | None = None


def ask(
    targets: Targets, inquiry: Inquiry, *, record: Path | None = None, heard: Callable[[Node], None] = lambda _: None
) -> Answers:
    """Ask all nodes, and return what has arrived, also if Ctrl-C or SIGTERM ends it.

    Args:
        record: the file to which each answer is written as it comes.
        heard: is called with each node that was heard.

    Raises:
        EnvironmentFault: the record cannot be written.
    """
    questions = inquiry.question(), inquiry.question_to_agents(targets.agents)
    found: dict[str, Node] = {}
    recorder = _recorder(record, targets.all) if record is not None else None

    def take(node: Node, document: Any) -> None:
        nonlocal recorder
        found[node.name] = node
        heard(node)
        if recorder is not None:
            try:
                recorder.take(node, document)
            except OSError as error:  # the report is worth more than its record
                logger.warning("%s is not complete: %s", record, error.strerror or error)
                recorder = None

    ended = None
    try:
        asyncio.run(_ask(targets, *questions, take))
    except KeyboardInterrupt:
        ended = signal.SIGINT
    except asyncio.CancelledError:  # how `_ask` ends on SIGTERM
        ended = signal.SIGTERM
    if recorder is not None:
        recorder.close()
    names = targets.all
    return Answers(tuple(found[n] for n in names if n in found), tuple(n for n in names if n not in found), ended)


def _recorder(path: Path, asked: Sequence[str]) -> Recorder:
    try:
        return Recorder(path, asked)
    except OSError as error:
        why = error.strerror or str(error)
        hint = "aifx doctor fleet --record ANOTHER_FILE"
        raise EnvironmentFault(f"{path} cannot be written", why, hint) from None


async def _ask(targets: Targets, of_nodes: Question, of_agents: Question, heard: Callable[[Node, Any], None]) -> None:
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
