"""A fleet's nodes, asked for their reports all at once, each in the way that its name says."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.cluster.hosts import is_address, read_hosts, slurm_hosts
from aifx.core.errors import EnvironmentFault, Terminated, UsageError
from aifx.core.lifecycle import polling
from aifx.core.progress import report_progress
from aifx.health.fleet.record import Recorder
from aifx.health.fleet.report import Node
from aifx.health.fleet.transports import POLL_S, Inquiry, OnAnswer, ask_agents, ask_slurm, ask_ssh

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """The nodes of a fleet by how they are asked, each once."""

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
    """Check that collective tests can run among nodes. Raises UsageError."""
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
class Answers:
    """The answers of a fleet.

    Attributes:
        nodes: those that answered, in the order in which they were named.
        unanswered: those that had not answered when a signal came.
        ended_by: the signal that ended the asking; None if it ended by itself.
    """

    nodes: Sequence[Node]
    unanswered: Sequence[str] = ()
    ended_by: int | None = None


def ask(targets: Targets, inquiry: Inquiry, record: Path | None, stop: Sequence[int] = ()) -> Answers:
    """Ask all nodes, and return what has arrived, also if Ctrl-C or a signal in `stop` ends it.

    Each answer is written to `record` as it comes. Raises EnvironmentFault if that file cannot be written.
    """
    inquiry.check_agents(targets.agents)
    names = targets.all
    found: dict[str, Node] = {}
    try:
        recorder = Recorder(record, names) if record is not None else None
    except OSError as error:
        hint = "aifx doctor fleet --record ANOTHER_FILE"
        raise EnvironmentFault(f"{record} cannot be written", error.strerror or str(error), hint) from None

    def take(node: Node, document: Any) -> None:
        nonlocal recorder
        found[node.name] = node
        progress.advance(1)
        if recorder is not None:
            try:
                recorder.take(node, document)
            except OSError as error:  # the report is worth more than its record
                logger.warning("%s is not complete: %s", record, error.strerror or error)
                recorder = None

    ended_by: int | None = None
    try:
        with report_progress("asking", len(names), "nodes") as progress, polling(stop):
            asyncio.run(_ask(targets, inquiry, take, stop))
    except asyncio.CancelledError:
        pass  # by a signal in `stop`
    except KeyboardInterrupt as error:
        ended_by = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    if stop:  # the first signal, also if a second one interrupted
        ended_by = stop[0]
    if recorder is not None:
        recorder.close()
    return Answers(
        [found[name] for name in names if name in found],
        [n for n in names if n not in found],
        ended_by,
    )


async def _ask(targets: Targets, inquiry: Inquiry, on_answer: OnAnswer, stop: Sequence[int]) -> None:
    """Ask until all have answered, or until `stop` has a signal, which cancels this."""
    task = asyncio.current_task()
    assert task is not None

    async def cancel_at_signal() -> None:
        while not stop:
            await asyncio.sleep(POLL_S)
        task.cancel()

    ways = (ask_ssh, targets.ssh), (ask_slurm, targets.slurm), (ask_agents, targets.agents)
    watch = asyncio.create_task(cancel_at_signal())
    try:
        await asyncio.gather(*(way(nodes, inquiry, on_answer) for way, nodes in ways if nodes))
    finally:
        watch.cancel()
