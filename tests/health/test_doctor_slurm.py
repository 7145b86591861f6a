"""Programs that Slurm runs on a node, with a `scontrol` that keeps one node in a file: drains of aifx and of others."""

from __future__ import annotations

import os
import subprocess
import sys
import syslog
from pathlib import Path
from typing import Any

import pytest
from health_trees import changed, machines, snapshot_of

from aifx.commands.main import run
from aifx.health import isolated_check
from aifx.health.slurm import Node, Verdict, parse_node, step_for
from aifx.health.snapshot import write

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RULE = "memory.ecc.uncorrected"

# scontrol of Slurm 24.11.5, shortened.
SHOWN = """\
NodeName=n2 Arch=x86_64 CoresPerSocket=1
   CPUAlloc=0 CPUEfctv=1 CPUTot=1 CPULoad=3.09
   OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0
   State={state} ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A
   BootTime=2026-11-25T09:32:50 SlurmdStartTime=2026-11-25T10:28:31
{reason}   Comment=Reason=aifx: not this
"""

SCONTROL = r"""#!/bin/sh
file=$FAKE_NODE
{ read -r state; read -r reason; } < "$file"
echo "$*" >> "$file.calls"
[ -f "$file.hang" ] && exec sleep 600
case "$1 $2" in
"show node")
    [ "$3" = n2 ] || { echo "Node $3 not found"; exit 1; }
    printf 'NodeName=n2 Arch=x86_64 CoresPerSocket=1 \n   OS=Linux 6.18\n   State=%s ThreadsPerCore=1\n' "$state"
    [ -n "$reason" ] && printf '   Reason=%s [root@2026-11-25T10:28:45]\n' "$reason"
    exit 0 ;;
"update NodeName=n2")
    for word in "$@"; do
        case $word in
        State=DRAIN) state=${state%+DRAIN}+DRAIN ;;
        State=RESUME) state=${state%+DRAIN}; reason= ;;
        Reason=*) reason=${word#Reason=} ;;
        esac
    done
    printf '%s\n%s\n' "$state" "$reason" > "$file" ;;
*) exit 1 ;;
esac
"""


class FakeSlurm:
    """A node n2, as `scontrol` sees it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "node"
        self.set("IDLE")
        scontrol = folder / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(SCONTROL)
        scontrol.chmod(0o755)

    def set(self, state: str, reason: str = "") -> None:
        self.file.write_text(f"{state}\n{reason}\n")
        self.calls(forget=True)

    def node(self) -> tuple[str, str]:
        state, reason = self.file.read_text().splitlines()
        return state, reason

    def calls(self, forget: bool = False) -> list[str]:
        calls = Path(f"{self.file}.calls")
        told = calls.read_text().splitlines() if calls.exists() else []
        if forget:
            calls.unlink(missing_ok=True)
        return told


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_NODE", str(fake.file))
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    return fake


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks in this process: one of its own takes a third of a second."""

    def run_isolated_check(asked: isolated_check.Asked, limit_s: float) -> tuple[dict[str, Any], list[str]]:
        answer = isolated_check.check_here(asked)
        return answer["report"], answer["rules"]

    monkeypatch.setattr(isolated_check, "run_isolated_check", run_isolated_check)


@pytest.fixture(autouse=True)
def generous_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit below that of all commands is the test's own; any other only ends a hang."""
    run_check = isolated_check.run_isolated_check

    def generous(asked: isolated_check.Asked, limit_s: float) -> tuple[dict[str, Any], list[str]]:
        return run_check(asked, limit_s if 0 < limit_s <= 2 else 600.0)

    monkeypatch.setattr(isolated_check, "run_isolated_check", generous)
    monkeypatch.setattr("aifx.health.slurm.SCONTROL_LIMIT_S", 600.0)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines written to the system's log."""
    lines: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda _priority, line: lines.append(line))
    return lines


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Options that look at memory: right, broken, and not readable."""
    folder = tmp_path_factory.mktemp("recorded")
    count = "sys/devices/system/edac/mc/mc1/ue_count"
    changes = {
        "right": {},
        "broken": {count: "1\n"},
        "unreadable": {count: "nonsense\n"},
        "gone": {"sys/devices/system/edac": None},
    }
    for name, change in changes.items():
        write(snapshot_of(changed(machines()["server"](), change), folder / "tree"), folder / f"{name}.json")
    return {name: ["--only", "memory", "--replay", str(folder / f"{name}.json")] for name in changes}


def check(*options: str) -> int:
    return run(["doctor", "slurm", "health-check", *options])


def test_a_broken_node_is_drained_once(
    slurm: FakeSlurm, recorded: dict[str, list[str]], logged: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert check(*recorded["broken"], "--dry-run") == 0
    assert slurm.node() == ("IDLE", "")
    out = capfd.readouterr().out
    assert out.startswith("n2: ")
    assert " drain: aifx: " in out
    assert check(*recorded["broken"]) == 0
    state, reason = slurm.node()
    assert state == "IDLE+DRAIN"
    assert reason.startswith(f"aifx: {RULE} ")
    assert "mc1" in reason
    assert len(logged) == 1
    slurm.calls(forget=True)
    assert check(*recorded["broken"]) == 0
    assert slurm.calls() == ["show node n2"]
    assert slurm.node() == (state, reason)
    assert "already drained" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("IDLE+DRAIN", "new fans, Eve"),
        ("IDLE+DRAIN", f"{RULE} is looked at by Eve"),
        ("IDLE+DRAIN", "Prolog error"),
        ("MIXED+DRAIN", ""),
        ("DOWN*", "Not responding"),
    ],
)
@pytest.mark.parametrize("machine", ["broken", "right"])
@pytest.mark.usefixtures("checked_here")
def test_what_others_have_set_is_left(
    state: str, reason: str, machine: str, slurm: FakeSlurm, recorded: dict[str, list[str]]
) -> None:
    slurm.set(state, reason)
    assert check(*recorded[machine], "--resume") == 0
    assert slurm.calls() == ["show node n2"]
    assert slurm.node() == (state, reason)


@pytest.mark.usefixtures("checked_here")
def test_resumed_when_its_rule_is_right_again(
    slurm: FakeSlurm, recorded: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    ours = ("IDLE+DRAIN", f"aifx: {RULE} mc1 is ill")
    slurm.set(*ours)
    assert check(*recorded["right"]) == 0
    assert slurm.calls() == []  # slurmctld is not asked by every healthy node
    for not_evaluated in ("unreadable", "gone"):
        assert check(*recorded[not_evaluated], "--resume") == 0
        assert slurm.node() == ours
    assert check("--only", "cpu", *recorded["right"][2:], "--resume") == 0
    assert slurm.node() == ours
    assert check(*recorded["right"], "--resume", "--dry-run") == 0
    assert slurm.node() == ours
    assert "would be: resume" in capfd.readouterr().out
    assert check(*recorded["right"], "--resume") == 0
    assert slurm.node() == ("IDLE", "")


@pytest.mark.usefixtures("checked_here")
def test_prolog_keeps_jobs_off_a_broken_node_alone(
    slurm: FakeSlurm, recorded: dict[str, list[str]], logged: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    codes = {name: run(["doctor", "slurm", "prolog", *options]) for name, options in recorded.items()}
    assert codes == {"right": 0, "broken": 10, "unreadable": 0, "gone": 0}
    assert run(["doctor", "slurm", "prolog", *recorded["broken"], "--dry-run"]) == 0
    assert f"n2: aifx: {RULE} " in capfd.readouterr().out
    assert len(logged) == 1
    assert slurm.calls() == []  # https://slurm.schedmd.com/prolog_epilog.html: no Slurm command in a prolog


@pytest.mark.parametrize(
    "options",
    [
        ["--site", "/nowhere/health.toml"],
        ["--replay", "/nowhere.json"],
        ["--only", "no.such.rule"],
        ["--no-such-option"],
        ["--limit", "soon"],
        ["extra"],
    ],
)
@pytest.mark.parametrize("command", ["health-check", "prolog"])
def test_our_mistakes_change_nothing(
    command: str, options: list[str], slurm: FakeSlurm, logged: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "slurm", command, *options]) == 0
    assert slurm.calls() == []
    assert len(logged) == 1
    assert capfd.readouterr().err.startswith("aifx doctor slurm: ")


def test_a_misspelt_mode_changes_nothing() -> None:
    assert run(["doctor", "slurm", "prlog"]) == 0
    assert run(["doctor", "--json", "slurm", "prolog"]) == 0


@pytest.mark.parametrize(
    "body", ["import os; os.kill(os.getpid(), 11)", "raise ImportError('gone')", "import sys; sys.exit(1)"]
)
def test_a_check_that_crashes_changes_nothing(
    body: str, slurm: FakeSlurm, recorded: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydantic.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert run(["doctor", "slurm", "prolog", *recorded["broken"]]) == 0
    assert check(*recorded["broken"]) == 0
    assert slurm.calls() == []


def test_a_check_that_hangs_changes_nothing(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pydantic.py").write_text("import time; time.sleep(1000)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert run(["doctor", "slurm", "prolog", "--limit", "2"]) == 0
    assert "took more than" in capfd.readouterr().err
    assert slurm.calls() == []


@pytest.mark.usefixtures("checked_here")
def test_slurm_that_does_not_answer(
    slurm: FakeSlurm,
    recorded: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert check(*recorded["broken"], "--node", "n9") == 0
    assert "Node n9 not found" in capfd.readouterr().err
    Path(f"{slurm.file}.hang").touch()
    monkeypatch.setattr("aifx.health.slurm.SCONTROL_LIMIT_S", 0.5)
    assert check(*recorded["broken"]) == 0
    assert "did not answer" in capfd.readouterr().err
    monkeypatch.setattr("aifx.health.slurm.FOLDERS", ("/nowhere",))
    monkeypatch.setenv("PATH", "/nowhere")
    assert check(*recorded["broken"]) == 0
    assert "there is no scontrol here" in capfd.readouterr().err
    assert slurm.node() == ("IDLE", "")


@pytest.mark.parametrize(
    ("state", "reason_field", "states", "reason"),
    [
        ("IDLE", "", {"IDLE"}, ""),
        ("DOWN*+DRAIN", "x [y] [root@2026-11-25T10:28:45]", {"DOWN", "DRAIN"}, "x [y]"),
        ("IDLE+DRAIN", "aifx: a.b c | d=1 [slurm@2026-11-25T10:28:45]", {"IDLE", "DRAIN"}, "aifx: a.b c | d=1"),
        ("MIXED$+REBOOT_ISSUED", "Reboot ASAP", {"MIXED", "REBOOT_ISSUED"}, "Reboot ASAP"),
    ],
)
def test_what_scontrol_shows(state: str, reason_field: str, states: set[str], reason: str) -> None:
    text = SHOWN.format(state=state, reason=f"   Reason={reason_field}\n" if reason_field else "")
    assert parse_node(text) == Node("n2", frozenset(states), reason)


A, B = ("nvidia.a", "GPU 0 is ill"), ("nvidia.b", "GPU 1 is ill")
BOTH = frozenset({"nvidia.a", "nvidia.b"})


@pytest.mark.parametrize(
    ("critical", "evaluated", "reason", "action"),
    [
        ((A,), BOTH, "aifx: nvidia.a GPU 7 was ill", "nothing"),  # other words, same rule
        ((B, A), BOTH, "aifx: nvidia.a GPU 0 is ill", "nothing"),  # a worse one came: the reason still holds
        ((B,), BOTH, "aifx: nvidia.a GPU 0 is ill", "reason"),
        ((B,), {"nvidia.b"}, "aifx: nvidia.a GPU 0 is ill", "nothing"),  # its GPU may be gone
        ((), BOTH, "aifx: nvidia.a GPU 0 is ill", "resume"),
        ((), {"nvidia.b"}, "aifx: nvidia.a GPU 0 is ill", "nothing"),
        ((), BOTH, "aifx:", "nothing"),
        ((B,), BOTH, "looked at by Eve: aifx: nvidia.a", "nothing"),
    ],
)
def test_drains_of_ours_follow_their_rule(
    critical: tuple[tuple[str, str], ...], evaluated: set[str], reason: str, action: str
) -> None:
    verdict = Verdict("unhealthy" if critical else "healthy", critical, frozenset(evaluated))
    step = step_for(verdict, Node("n2", frozenset({"IDLE", "DRAIN"}), reason), may_resume=True)
    assert step.action == action
    if action == "reason":
        assert step.change == ("Reason=aifx: nvidia.b GPU 1 is ill",)


@pytest.mark.parametrize("state", ["DOWN", "POWERED_DOWN", "REBOOT_ISSUED", "FAIL"])
def test_a_node_out_of_service_is_left(state: str) -> None:
    ours = Node("n2", frozenset({state, "DRAIN"}), "aifx: nvidia.a GPU 0 is ill")
    for verdict in (Verdict("unhealthy", (B,), BOTH), Verdict("healthy", (), BOTH)):
        assert step_for(verdict, ours, may_resume=True).change == ()


def test_a_leftover_reason_is_no_drain() -> None:
    """Slurm shows the reason until the node has registered again."""
    node = Node("n2", frozenset({"IDLE", "NOT_RESPONDING"}), "aifx: nvidia.a GPU 0 is ill")
    assert step_for(Verdict("healthy", (), BOTH), node, may_resume=True).action == "nothing"
    assert step_for(Verdict("unhealthy", (A,), BOTH), node, may_resume=True).action == "drain"


def test_a_reason_is_one_short_line() -> None:
    reason = Verdict("unhealthy", (("a.b", "x\n" * 500),), frozenset()).reason
    assert len(reason) <= 200
    assert reason.isprintable()


@pytest.mark.parametrize(
    ("stub", "prolog"),
    [
        ("exit 10", 1),
        ("exit 0", 0),
        ("exit 1", 0),  # Python's own, for what cannot be imported
        ("exit 70", 0),
        ("kill -9 $$", 0),
        (None, 0),
    ],
)
def test_the_example_scripts(stub: str | None, prolog: int, tmp_path: Path) -> None:
    aifx = tmp_path / "aifx"
    if stub is not None:
        aifx.write_text(f"#!/bin/sh\n{stub}\n")
        aifx.chmod(0o755)
    for name, code in (("slurm-prolog.sh", prolog), ("slurm-health-check.sh", 0)):
        script = (EXAMPLES / name).read_text()
        assert script.count("AIFX=/opt/aifx/bin/aifx\n") == 1
        (tmp_path / name).write_text(script.replace("/opt/aifx/bin/aifx", str(aifx)))
        done = subprocess.run(["/bin/sh", str(tmp_path / name)], env={}, capture_output=True, timeout=120, check=False)
        assert done.returncode == code


@pytest.mark.slow
def test_without_path_or_home(recorded: dict[str, list[str]], tmp_path: Path) -> None:
    """slurmd starts HealthCheckProgram with SLURMD_NODENAME alone."""
    command = [sys.executable, "-m", "aifx.commands.main", "doctor", "slurm", "prolog", "--limit", "55"]
    command += recorded["broken"]
    environ = {"SLURMD_NODENAME": "n2", "AIFX_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (10, "")
    assert done.stdout.startswith(f"n2: aifx: {RULE} ")
