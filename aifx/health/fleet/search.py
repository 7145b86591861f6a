"""The search for a bad node or link with collective tests, over ssh or srun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aifx.health import bisect, collective_launch
from aifx.health.bisect import BisectResult
from aifx.health.collective_launch import Options
from aifx.health.fleet.ask import split_remote
from aifx.health.fleet.rank import gpus_of
from aifx.health.fleet.report import Node


@dataclass(frozen=True)
class Search:
    """How nodes are tested.

    Attributes:
        budget_s: for all tests.
        over_slurm: whether srun starts the ranks, and not ssh.
        remote: the command that runs aifx on a node.
        over: what carries the collectives: the devices, or the hosts' network alone.
        limit_s: for one test.
        num_bytes: each device's buffer, or each host's over tcp.
        expected_gb_s: the bus bandwidth that all nodes together should reach; 0 if that is unknown.
        margin: how much slower than groups of its size a group counts as slow.
        faults: planted delays, by node or link: seconds per message.
    """

    budget_s: float
    over_slurm: bool = False
    remote: str = "aifx"
    over: Literal["jax", "tcp"] = "jax"
    limit_s: float = 120.0
    num_bytes: int = 64 << 20
    expected_gb_s: float = 0.0
    margin: float | None = None
    faults: Mapping[tuple[str, ...], float] = field(default_factory=dict)

    def run(self, nodes: Sequence[str]) -> BisectResult:
        """Search among nodes that `aifx.health.fleet.ask.check_testable` accepts."""
        program = (*split_remote(self.remote), "doctor", "collective-worker")
        options = Options(program, self.over, num_bytes=self.num_bytes, limit_s=self.limit_s, faults=self.faults)
        test = collective_launch.over_slurm if self.over_slurm else collective_launch.over_ssh
        return bisect.bisect(
            nodes,
            lambda group, limit_s: test(group, limit_s, options),
            self.budget_s,
            expected_gb_s=self.expected_gb_s,
            margin=bisect.MARGIN if self.margin is None else self.margin,
        )


def carrier_of(nodes: Sequence[Node]) -> Literal["jax", "tcp"]:
    """Return what carries the collectives among nodes: JAX if a node has a GPU, otherwise the hosts' network."""
    return "jax" if any(map(gpus_of, nodes)) else "tcp"


def too_few(nodes: Sequence[str]) -> BisectResult:
    """Return the result of a search without two nodes to test."""
    return BisectResult((), tuple(nodes), "unclear", "fewer than two nodes sent a report", (), 0.0)
