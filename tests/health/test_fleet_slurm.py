"""`aifx doctor fleet --slurm` in an allocation of a real Slurm: one step asks both nodes, whose files differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from health_trees import machines, snapshot_of
from slurm_cluster import NODES, Cluster, cluster, make_aifx, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        for node in NODES:
            snapshot_of(machines()["server"](), started.folder / "trees" / node)
        (started.folder / "trees" / "n2/sys/devices/system/edac/mc/mc1/ue_count").write_text("1\n")
        yield started


def asked(slurm: Cluster, remote: Path, *options: str) -> tuple[int, dict]:
    """The exit code and the report of `aifx doctor fleet --slurm` in a job on both nodes."""
    report = slurm.folder / "report.json"
    ours = f"{sys.executable} -m aifx.commands.main doctor fleet --slurm --json --remote {remote} "
    ours += " ".join(("--timeout 600", *options))
    job = slurm.submit(f"{ours} > {report}; echo ended with $?", "-N2")
    slurm.wait("the job's end", lambda: "ended with" in slurm.output(job))
    output = slurm.output(job)
    assert report.read_text(), output
    return int(output.rsplit(maxsplit=1)[-1]), json.loads(report.read_text())


def test_a_step_asks_the_nodes_of_the_allocation(slurm: Cluster):
    trees = f'--root {slurm.folder}/trees/"$SLURMD_NODENAME"'
    code, report = asked(slurm, make_aifx(slurm.folder / "aifx", trees), "--only", "memory")
    assert [(node["node"], node["status"]) for node in report["nodes"]] == [("n1", "healthy"), ("n2", "unhealthy")]
    assert report["nodes"][1]["findings"][0]["id"] == "memory.ecc.uncorrected"
    assert [suspect["node"] for suspect in report["suspects"]] == ["n2"]
    assert report["findings"] == []
    assert code == 1


def test_a_node_that_hangs_holds_up_nobody(slurm: Cluster):
    hanging, report = slurm.folder / "hanging", slurm.folder / "report-n1.json"
    report.write_text('{"schema_version": 1, "host": "n1", "status": "healthy", "findings": [], "skipped": []}')
    hanging.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && exec sleep 600\nexec cat {report}\n')
    hanging.chmod(0o755)
    code, report = asked(slurm, hanging, "--only", "memory", "--timeout", "60")
    assert report["nodes"][0]["status"] == "healthy"
    (finding,) = report["findings"]
    assert (finding["id"], finding["device"]) == ("fleet.node.silent", "n2")
    assert code == 1


RANK = f"""\
#!{sys.executable}
import os, socket, sys
if "collective-worker" not in sys.argv:
    os.execv(sys.argv[0] + "-check", sys.argv)
# The nodes' names are Slurm's alone: all are this machine.
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **named: real("127.0.0.1" if host in {NODES} else host, *more, **named)
from aifx.health.collective_worker import main
sys.exit(main(sys.argv[3]))
"""


def test_steps_of_slurm_are_the_ranks_of_a_collective(slurm: Cluster):
    remote = slurm.folder / "ranks"
    make_aifx(slurm.folder / "ranks-check", f'--root {slurm.folder}/trees/"$SLURMD_NODENAME"')
    remote.write_text(RANK)
    remote.chmod(0o755)
    code, report = asked(slurm, remote, "--only", "cpu", "--bisect", "--budget", "600")
    assert [node["node"] for node in report["nodes"]] == list(NODES)
    (trial,) = report["bisect"]["tests"]
    assert (trial["nodes"], trial["why"]) == (list(NODES), "")
    assert min(trial["gb_s"]) > 0
    # Two nodes were quick together, and there is no third to say what quick is.
    assert (code, report["bisect"]["ended"]) == (2, "unclear")
    assert [finding["id"] for finding in report["findings"]] == ["fleet.bisect.unclear"]
