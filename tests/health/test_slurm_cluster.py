"""`aifx doctor slurm` under a real Slurm: what is drained, what is left alone, and where jobs run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from health_trees import machines, snapshot_of
from slurm_cluster import NODES, Cluster, cluster, make_aifx, missing, set_program

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RULE = "memory.ecc.uncorrected"
COUNT = "sys/devices/system/edac/mc/mc1/ue_count"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def slurm(started: Cluster) -> Iterator[Cluster]:
    """Both nodes in service, a healthy machine's files in trees/n1 and trees/n2, and no program of ours set."""
    for node in NODES:
        snapshot_of(machines()["server"](), started.folder / "trees" / node)
    yield started
    for name in ("health-check", "prolog"):
        set_program(started.folder / name, "exit 0")
    started.wait("checks that still run", lambda: not any(started.folder.glob("running.*")))
    for node in NODES:
        if is_drained(started, node):
            started.update(node, "State=RESUME")
    started.wait("nodes in service", lambda: all(started.node(node)["State"] == "IDLE" for node in NODES))


def set_ours(slurm: Cluster, name: str, options: str = "") -> None:
    """The example script as what Slurm runs; each run leaves a line in `name`.runs."""
    trees = f'--limit 55 --only memory --root {slurm.folder}/trees/"$SLURMD_NODENAME"'
    aifx = make_aifx(slurm.folder / f"aifx-{name}", f"{trees} {options}")
    script = (EXAMPLES / f"slurm-{name}.sh").read_text().replace("/opt/aifx/bin/aifx", str(aifx))
    script = script.replace("# SLURM_CONF=/etc/slurm/slurm.conf;", f"SLURM_CONF={slurm.folder}/slurm.conf;")
    runs = slurm.folder / f"{name}.runs"
    runs.unlink(missing_ok=True)
    running = f"{slurm.folder}/running.$$"
    ended = f'rm {running}; echo "$SLURMD_NODENAME" >> {runs}'
    set_program(slurm.folder / name, f"touch {running}; trap '{ended}' EXIT\n{script}")


def break_memory(slurm: Cluster, node: str) -> None:
    (slurm.folder / "trees" / node / COUNT).write_text("1\n")


def wait_for_checks(slurm: Cluster, number: int = 2) -> None:
    """Until each node was checked so often from now on."""
    runs = slurm.folder / "health-check.runs"

    def counts() -> list[int]:
        lines = runs.read_text().split() if runs.exists() else []
        return [lines.count(node) for node in NODES]

    before = counts()
    slurm.wait("checks", lambda: all(now >= then + number for now, then in zip(counts(), before, strict=True)))


def is_drained(slurm: Cluster, node: str) -> bool:
    """Whether it is now; its last reason stands there until it registers again."""
    return "DRAIN" in slurm.node(node)["State"]


def is_ours(slurm: Cluster, node: str) -> bool:
    fields = slurm.node(node)
    return fields["State"] == "IDLE+DRAIN" and fields["Reason"].startswith(f"aifx: {RULE} ")


def test_the_broken_node_alone_is_drained_and_comes_back(slurm: Cluster) -> None:
    break_memory(slurm, "n2")
    set_ours(slurm, "health-check")
    slurm.wait("n2 drained", lambda: is_ours(slurm, "n2"))
    drained = slurm.node("n2")
    wait_for_checks(slurm)
    assert slurm.node("n2") == drained  # the reason carries its time: it was set once
    assert not is_drained(slurm, "n1")
    (slurm.folder / "trees" / "n2" / COUNT).write_text("0\n")
    slurm.wait("n2 in service", lambda: slurm.node("n2")["State"] == "IDLE")


def test_an_administrators_drain_is_theirs(slurm: Cluster) -> None:
    for node in NODES:
        slurm.update(node, "State=DRAIN", "Reason=new fans, Eve")
    theirs = [slurm.node(node) for node in NODES]
    break_memory(slurm, "n2")
    set_ours(slurm, "health-check")
    wait_for_checks(slurm)
    assert [slurm.node(node) for node in NODES] == theirs


def test_a_reason_of_ours_follows_what_is_wrong(slurm: Cluster) -> None:
    """One whose rule has come right while another has not; Slurm takes a reason without a state."""
    slurm.update("n2", "State=DRAIN", "Reason=aifx: memory.available.low it was full")
    break_memory(slurm, "n2")
    set_ours(slurm, "health-check")
    slurm.wait("another reason", lambda: is_ours(slurm, "n2"))
    assert not is_drained(slurm, "n1")


@pytest.mark.parametrize("options", ["--site /nowhere/health.toml", "--only no.such.rule", "--no-such-option"])
def test_our_own_failure_drains_nothing(options: str, slurm: Cluster) -> None:
    break_memory(slurm, "n2")
    set_ours(slurm, "health-check", options)
    set_ours(slurm, "prolog", options)
    wait_for_checks(slurm, 1)
    job = slurm.submit("echo ran on $SLURMD_NODENAME", "-w", "n2")
    slurm.wait("the job's end", lambda: slurm.output(job) == "ran on n2\n")
    assert (slurm.folder / "prolog.runs").read_text() == "n2\n"
    assert not any(is_drained(slurm, node) for node in NODES)


def test_a_broken_python_drains_nothing(slurm: Cluster) -> None:
    break_memory(slurm, "n2")
    for name in ("health-check", "prolog"):
        set_ours(slurm, name)
        set_program(slurm.folder / f"aifx-{name}", "exec /nowhere/python")
    wait_for_checks(slurm, 1)
    job = slurm.submit("echo ran on $SLURMD_NODENAME", "-w", "n2")
    slurm.wait("the job's end", lambda: slurm.output(job) == "ran on n2\n")
    assert not any(is_drained(slurm, node) for node in NODES)


def test_prolog_sends_the_job_to_the_other_node(slurm: Cluster) -> None:
    break_memory(slurm, "n1")  # where Slurm would put it first
    set_ours(slurm, "prolog")
    job = slurm.submit("echo ran on $SLURMD_NODENAME", "--requeue")
    slurm.wait("n1 drained", lambda: is_drained(slurm, "n1"))
    assert slurm.node("n1")["Reason"].startswith("Prolog error")  # Slurm's words; ours are in slurmd's log
    assert f"n1: aifx: {RULE} " in (slurm.folder / "slurmd-n1.log").read_text()
    # Slurm lets two minutes pass before it looks at a requeued job again; an administrator need not.
    slurm.wait("the job in the queue", lambda: "PENDING" in slurm.ask("squeue", "-h", "-o", "%T", "-j", job))
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait("the job's end", lambda: slurm.output(job) == "ran on n2\n")
    assert not is_drained(slurm, "n2")
