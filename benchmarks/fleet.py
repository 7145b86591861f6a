"""A fleet of simulated agents on loopback, asked by `aifx doctor fleet --hosts`: how long it takes, and what it finds.

    python benchmarks/fleet.py [--nodes 1000] [--slow 50] [--dead 20] [--outliers 3] [--timeout 5]

The agents are one process that answers for all (tests/health/fleet_agents.py); the client is the real program. Its
time is from its start to its end, with the time limit of the nodes that never answer in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AIFX = [sys.executable, "-c", "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"]
AGENTS = Path(__file__).parents[1] / "tests" / "health" / "fleet_agents.py"
GOAL_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("nodes", 1000), ("slow", 50), ("dead", 20), ("outliers", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--slow-s", type=float, default=3.0)
    parser.add_argument("--timeout", type=float, default=5.0)
    asked = parser.parse_args()
    numbers = (asked.nodes, asked.slow, asked.dead, asked.outliers)
    with tempfile.TemporaryDirectory() as folder:
        seconds, report = ask(Path(folder), *numbers, slow_s=asked.slow_s, timeout_s=asked.timeout)
    wrong = mistakes(report, *numbers)
    print(f"{asked.nodes} nodes, {asked.slow} slow, {asked.dead} dead: {seconds:.1f} s (goal {GOAL_S:.0f} s)")
    print("\n".join(wrong) or f"found: the {asked.dead} dead and the {asked.outliers} outliers, and nothing else")
    raise SystemExit(bool(wrong))


@contextmanager
def agents(nodes: int, slow: int, dead: int, outliers: int, slow_s: float) -> Iterator[int]:
    """The port of the simulated agents."""
    command = [sys.executable, str(AGENTS), *map(str, (nodes, slow, dead, outliers, slow_s))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def ask(
    folder: Path, nodes: int, slow: int, dead: int, outliers: int, *, slow_s: float, timeout_s: float
) -> tuple[float, dict[str, Any]]:
    """Seconds, and the report."""
    hosts = folder / "hosts"
    with agents(nodes, slow, dead, outliers, slow_s) as port:
        hosts.write_text("".join(f"http://127.0.0.1:{port}/node{number}\n" for number in range(nodes)))
        began = time.perf_counter()
        command = [*AIFX, "doctor", "fleet", "--hosts", str(hosts), "--timeout", f"{timeout_s:g}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": str(folder)})
        seconds = time.perf_counter() - began
    if not done.stdout:
        raise SystemExit(done.stderr)
    return seconds, json.loads(done.stdout)


def mistakes(report: dict[str, Any], nodes: int, slow: int, dead: int, outliers: int) -> list[str]:
    """The findings that the report has too much, and those that it lacks."""
    kinds = ("fleet.stress.matmul", "fleet.nvidia.driver", "fleet.infiniband.ports")
    wanted = {(kinds[i % 3], f"n{slow + dead + i:04}") for i in range(outliers)}
    found = {(f["id"], f["device"]) for f in report["findings"]}
    silent = {device for name, device in found if name == "fleet.node.silent"}
    found = {pair for pair in found if pair[0] != "fleet.node.silent"}
    dead_ones = set(range(slow, slow + dead))
    told = {int(url.rpartition("node")[2]) for url in silent}
    wrong = [f"not found: {' at '.join(pair)}" for pair in sorted(wanted - found)]
    wrong += [f"found, but healthy: {' at '.join(pair)}" for pair in sorted(found - wanted)]
    wrong += [f"dead, but not told: {number}" for number in sorted(dead_ones - told)]
    wrong += [f"told as dead, but not: {number}" for number in sorted(told - dead_ones)]
    healthy = sum(node["status"] == "healthy" for node in report["nodes"])
    wrong += [f"{healthy} nodes are healthy by themselves, not {nodes - dead}"] if healthy != nodes - dead else []
    suspects = {suspect["node"] for suspect in report["suspects"]}
    wrong += [] if {device for _, device in wanted} <= suspects else ["an outlier is no suspect"]
    return wrong


if __name__ == "__main__":
    main()
