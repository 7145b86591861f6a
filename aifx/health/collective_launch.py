"""Run a collective test over a group of hosts: start its ranks over ssh or with one srun, and read rank 0's answer."""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal

from aifx.cluster.hosts import srun_command, ssh_command
from aifx.core.lifecycle import interrupt_of
from aifx.core.parsing import parse_json
from aifx.core.processes import Child, run_many
from aifx.health.bisect import Verdict

CONNECT_S = 10.0
SRUN = ("--kill-on-bad-exit=1", "--wait=5")
PORTS = range(20_000, 30_000)
"""Below the ports that Linux assigns by itself (net.ipv4.ip_local_port_range begins at 32768)."""
PORT_TAKEN = "Address already in use"
TRIES = 3
GRACE_S = 1.0
"""Time for the other ranks to report, once one has failed."""


@dataclass(frozen=True)
class Options:
    """Settings of collective tests.

    Attributes:
        program: the command that runs aifx on a host.
        over_slurm: whether srun starts the ranks, and not ssh.
        over: what carries the collectives: the devices, or the hosts' network alone.
        num_bytes: each device's buffer, or each host's over tcp.
        repeats: timed calls per test, after an untimed one.
        limit_s: a test that takes longer has failed.
        faults: planted delays before each message of a node ("n3",) or over a link ("n1", "n5"), in seconds.
        stop: numbers of signals. As soon as it has one, a test raises KeyboardInterrupt.
    """

    program: Sequence[str] = ("aifx",)
    over_slurm: bool = False
    over: Literal["jax", "tcp"] = "jax"
    num_bytes: int = 64 << 20
    repeats: int = 5
    limit_s: float = 120.0
    faults: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    stop: Sequence[int] = ()


def run_test(group: Sequence[str], limit_s: float, options: Options) -> Verdict:
    """Run a test among hosts. Another port is tried if something else listens there."""
    limit_s = min(limit_s, options.limit_s)
    for _ in range(TRIES):
        port, word = PORTS[secrets.randbelow(len(PORTS))], secrets.token_hex(8)
        ranks = [rank_command(rank, group, port, word, limit_s, options) for rank in range(len(group))]
        if options.over_slurm:
            commands = [srun_command(group, ranks[0], *SRUN)]
        else:
            commands = [ssh_command(host, rank, connect_s=CONNECT_S) for host, rank in zip(group, ranks, strict=True)]
        verdict = _run(commands, group, limit_s, options.stop)
        if PORT_TAKEN not in verdict.why:
            break
    return verdict


def rank_command(rank: int, group: Sequence[str], port: int, word: str, limit_s: float, options: Options) -> list[str]:
    """Return the command of a rank on its host, `group[rank]`. The other hosts must know rank 0's host by that name.

    The tasks of one srun have one command and find their ranks, because Slurm chooses their order.
    """
    faults = {} if options.over_slurm else options.faults
    request = {
        "rank": rank,
        "size": len(group),
        "host": "" if options.over_slurm else group[0].rpartition("@")[2],
        "port": port,
        "word": word,
        "over": options.over,
        "num_bytes": options.num_bytes,
        "repeats": options.repeats,
        "limit_s": limit_s,
        "delays_s": [
            (peer, seconds)
            for fault, seconds in faults.items()
            for peer, host in enumerate(group)
            if peer != rank and group[rank] in fault and (len(fault) == 1 or host in fault)
        ],
    }
    return [*options.program, "doctor", "collective-worker", json.dumps(request)]


def _run(commands: list[list[str]], group: Sequence[str], limit_s: float, stop: Sequence[int]) -> Verdict:
    """Run the commands until all have ended, or until one has failed and the others have had time to report it."""
    ranks, failed, until = list[Child](), None, math.inf

    def start() -> Iterator[Child]:
        for command in commands:
            ranks.append(Child(command, limit_s=limit_s + GRACE_S, grace_s=GRACE_S))
            yield ranks[-1]

    # Ranks on other machines lose their connections if the command here ends, and end at their own limit at the latest.
    with closing(run_many(start(), len(commands))) as ended:
        for child in ended:
            if stop:
                raise interrupt_of(stop[0])
            if child and failed is None and child.wait().code != 0 and not child.wait().cut:
                failed, until = child, time.monotonic() + GRACE_S
            if time.monotonic() > until:
                break
    lines = ranks[0].wait().output.decode("utf-8", "replace").splitlines()
    with suppress(ValueError, IndexError, TypeError, KeyError, AttributeError):
        answer = parse_json(lines[-1])
        if 0 <= (gb_s := float(answer["gb_s"])) < math.inf:
            return Verdict(gb_s, _by_name(str(answer["why"]), group))
    worst = failed or ranks[0]
    host = f"{group[ranks.index(worst)]}: " if len(commands) > 1 else ""
    last_line = worst.wait().last_line or ranks[0].wait().last_line
    why = last_line or ("it printed nothing" if failed else f"no answer in {limit_s:g} s")
    return Verdict(0.0, _by_name(f"{host}{why}", group)[:300])


def _by_name(why: str, group: Sequence[str]) -> str:
    """Replace ranks in a message by their hosts."""
    names = {str(rank): host for rank, host in enumerate(group)}
    return re.sub(r"\brank (\d+)\b", lambda match: names.get(match[1], match[0]), why)
