"""Run a collective test over a group of hosts: start its ranks over ssh or with one srun, and read rank 0's answer."""

from __future__ import annotations

import json
import math
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

from aifx.core.executables import need_program
from aifx.core.processes import Child, run_many
from aifx.health.bisect import Verdict

SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", "--")
SRUN = ("srun", "--overlap", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=5")
WHY = "the ranks are started with it"
PORTS = range(20_000, 30_000)
"""Below the ports that Linux assigns by itself (net.ipv4.ip_local_port_range begins at 32768)."""
PORT_TAKEN = "Address already in use"
TRIES = 3
GRACE_S = 1.0
"""Time for the other ranks to report, once one has failed."""


@dataclass(frozen=True)
class Options:
    """Attributes:
    program: the command that runs a rank on a host.
    over: "jax" or "tcp".
    collective: "all_to_all", which uses every link, or "all_reduce", whose ring does not.
    num_bytes: each rank's buffer, or each device's.
    repeats: timed calls per test.
    limit_s: a test that takes longer has failed.
    faults: planted delays before each message of a node ("n3",) or over a link ("n1", "n5"), in seconds.
    """

    program: tuple[str, ...] = ("aifx", "doctor", "collective-worker")
    over: str = "jax"
    collective: str = "all_to_all"
    num_bytes: int = 64 << 20
    repeats: int = 5
    limit_s: float = 120.0
    faults: Mapping[tuple[str, ...], float] = field(default_factory=dict)


def rank_command(rank: int, group: Sequence[str], port: int, word: str, limit_s: float, options: Options) -> list[str]:
    """Return the command of a rank on its host, `group[rank]`. The other hosts must know rank 0's host by that name."""
    place = ["--rank", str(rank), "--size", str(len(group))]
    delays = [f"--delay={peer}={s:g}" for peer, s in _delays(rank, group, options.faults).items()]
    return _command(place, group[0], port, word, limit_s, options) + delays


def _command(place: list[str], host: str, port: int, word: str, limit_s: float, options: Options) -> list[str]:
    host = host.rpartition("@")[2]
    coordinator = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    figures = [f"--bytes={options.num_bytes}", f"--repeats={options.repeats}", f"--limit={limit_s:g}"]
    what = [f"--over={options.over}", f"--collective={options.collective}"]
    return [*options.program, *place, f"--coordinator={coordinator}", f"--word={word}", *what, *figures]


def _delays(rank: int, group: Sequence[str], faults: Mapping[tuple[str, ...], float]) -> dict[int, float]:
    mine = group[rank]
    return {
        peer: seconds
        for fault, seconds in faults.items()
        for peer, host in enumerate(group)
        if peer != rank and mine in fault and (len(fault) == 1 or host in fault)
    }


def over_ssh(group: Sequence[str], limit_s: float, options: Options) -> Verdict:
    """Start each rank with one `ssh`."""
    ssh = need_program(SSH[0], WHY)
    limit_s = min(limit_s, options.limit_s)

    def commands(port: int, word: str) -> list[list[str]]:
        return [
            [ssh, *SSH[1:], host, shlex.join(rank_command(rank, group, port, word, limit_s, options))]
            for rank, host in enumerate(group)
        ]

    return _tried(commands, group, limit_s)


def over_slurm(group: Sequence[str], limit_s: float, options: Options) -> Verdict:
    """Start all ranks with one srun. The tasks find their own ranks, because Slurm chooses their order."""
    srun = need_program(SRUN[0], WHY)
    limit_s = min(limit_s, options.limit_s)
    where = [f"--nodes={len(group)}", f"--nodelist={','.join(group)}"]

    def commands(port: int, word: str) -> list[list[str]]:
        return [[srun, *SRUN[1:], *where, *_command(["--slurm"], "slurm", port, word, limit_s, options)]]

    return _tried(commands, group, limit_s)


def here(group: Sequence[str], limit_s: float, options: Options) -> Verdict:
    """Start all ranks on this machine; the names of `group` are its addresses: 127.0.0.1, 127.0.0.2..."""
    limit_s = min(limit_s, options.limit_s)

    def commands(port: int, word: str) -> list[list[str]]:
        return [rank_command(rank, group, port, word, limit_s, options) for rank in range(len(group))]

    return _tried(commands, group, limit_s)


def _tried(commands: Callable[[int, str], list[list[str]]], group: Sequence[str], limit_s: float) -> Verdict:
    for _ in range(TRIES):
        port, word = PORTS[secrets.randbelow(len(PORTS))], secrets.token_hex(8)
        verdict = _run(commands(port, word), group, limit_s)
        if PORT_TAKEN not in verdict.why:
            break
    return verdict


def _run(commands: list[list[str]], group: Sequence[str], limit_s: float) -> Verdict:
    """Run the commands until all have ended, or until one has failed and the others have had time to report it."""
    ranks, failed, until = list[Child](), None, math.inf

    def start() -> Iterator[Child]:
        for command in commands:
            ranks.append(Child(command, limit_s=limit_s + GRACE_S, grace_s=GRACE_S))
            yield ranks[-1]

    # Ranks on other machines lose their connections if the command here ends, and end at their own limit at the latest.
    with closing(run_many(start(), len(commands))) as ended:
        for child in ended:
            if child and failed is None and child.wait().code != 0 and not child.wait().cut:
                failed, until = child, time.monotonic() + GRACE_S
            if time.monotonic() > until:
                break
    lines = ranks[0].wait().output.decode("utf-8", "replace").splitlines()
    with suppress(ValueError, IndexError, TypeError, KeyError, AttributeError):
        answer = json.loads(lines[-1])
        return Verdict(float(answer["gb_s"]), _by_name(str(answer["why"]), group))
    worst = failed or ranks[0]
    host = f"{group[ranks.index(worst)]}: " if len(commands) > 1 else ""
    last_line = worst.wait().last_line or ranks[0].wait().last_line
    why = last_line or ("it printed nothing" if failed else f"no answer in {limit_s:g} s")
    return Verdict(0.0, _by_name(f"{host}{why}", group)[:300])


def _by_name(why: str, group: Sequence[str]) -> str:
    """Replace ranks in a message by their hosts."""

    def name(match: re.Match[str]) -> str:
        rank = int(match[1])
        return group[rank] if rank < len(group) else match[0]

    return re.sub(r"\brank (\d+)\b", name, why)
