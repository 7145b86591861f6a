"""One line and an exit code, for Nagios and node-problem-detector."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from health_trees import changed, machines, snapshot_of

from aifx.commands.doctor.monitor_protocols import FORMATS, SLURM, caller_of
from aifx.commands.doctor.node import nagios, npd
from aifx.commands.main import run
from aifx.health.report import Finding, Report
from aifx.health.snapshot import write

# https://nagios-plugins.org/doc/guidelines.html: text, a bar, and 'label'=value[UOM];[warn];[crit];[min];[max]
NAGIOS_LINE = re.compile(r"AIFX (OK|WARNING|CRITICAL|UNKNOWN) - [^|\n]+( \|( [a-z]+=[\d.]+s?;\d*;\d*;\d*;?\d*)+)?")
CODES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def finding(severity: str, summary: str = "it is broken", device: str = "GPU 3") -> Finding:
    return Finding("nvidia.row_remap.pending", severity, device, summary, "seen", "is true", "source", "reset it")


def report(*findings: Finding) -> Report:
    return Report("n1", findings, (), 1.2345)


def test_nagios_counts_what_was_found() -> None:
    line, code = nagios(report(finding("critical"), finding("critical"), finding("warning")))
    assert line == (
        "AIFX CRITICAL - n1: 2 critical, 1 warning: GPU 3: it is broken"
        " | critical=2;;0;0 unknown=0;;;0 warning=1;0;;0 info=0;;;0 duration=1.234s;;;0"
    )
    assert code == 2


@pytest.mark.parametrize(
    ("severities", "of_nagios", "of_npd"),
    [([], "OK", 0), (["info"], "OK", 0), (["warning"], "WARNING", 0), (["unknown", "warning"], "UNKNOWN", 2),
     (["critical", "unknown"], "CRITICAL", 1)],
)  # fmt: skip
def test_codes(severities: list[str], of_nagios: str, of_npd: int) -> None:
    seen = report(*map(finding, severities))
    line, code = nagios(seen)
    assert line.startswith(f"AIFX {of_nagios} - ")
    assert code == CODES[of_nagios]
    assert npd(seen)[1] == of_npd
    assert npd(seen, strict=True)[1] == (1 if severities == ["warning"] else of_npd)


@pytest.mark.parametrize("summary", ["a | b\nc\x1b[31m\r", "é" * 300, "x" * 71, "x" * 72, "x" * 73, "漢" * 24, ""])
def test_one_line_of_anything(summary: str) -> None:
    for more in range(3):
        seen = report(finding("critical", summary), *[finding("info")] * more)
        assert NAGIOS_LINE.fullmatch(nagios(seen)[0])
        message = npd(seen)[0]
        assert len(message.encode()) <= 80
        assert message.isprintable()
        assert message.endswith(f"(+{more})") or not more


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings of a server, healthy, warm with corrected errors, and broken."""
    folder = tmp_path_factory.mktemp("recorded")
    controller = "sys/devices/system/edac/mc/mc1"
    changes = {
        "healthy": {},
        "warning": {f"{controller}/ce_count": "40120\n"},
        "broken": {f"{controller}/ue_count": "1\n"},
        "unreadable": {f"{controller}/ue_count": "nonsense\n"},
    }
    for name, change in changes.items():
        write(snapshot_of(changed(machines()["server"](), change), folder / "tree"), folder / f"{name}.json")
    return {name: folder / f"{name}.json" for name in changes}


@pytest.mark.parametrize(
    ("name", "of_nagios", "of_npd"),
    [("healthy", "OK", 0), ("warning", "WARNING", 0), ("broken", "CRITICAL", 1), ("unreadable", "UNKNOWN", 2)],
)
def test_the_command(
    name: str, of_nagios: str, of_npd: int, snapshots: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    checked = ["doctor", "--only", "memory", "--replay", str(snapshots[name])]
    assert run([*checked, "--format", "nagios"]) == CODES[of_nagios]
    line, end, rest = capfd.readouterr().out.partition("\n")
    assert NAGIOS_LINE.fullmatch(line), line
    assert (line.split()[1], end, rest) == (of_nagios, "\n", "")
    assert run([*checked, "--format=npd"]) == of_npd
    line = capfd.readouterr().out
    assert line.count("\n") == 1
    assert len(line.encode()) <= 81


@pytest.mark.parametrize(
    "arguments",
    [
        ["--replay", "/nowhere.json"],
        ["--no-such-option"],
        ["--json"],
        ["--only", "no.such.rule"],
        ["--site", "/nowhere.toml"],
        ["--sample", "a|b"],
        ["no-such-command"],
    ],
)
def test_what_fails_is_unknown(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--format", "nagios", *arguments]) == 3
    line = capfd.readouterr().out
    assert NAGIOS_LINE.fullmatch(line.removesuffix("\n")), line
    assert line.startswith("AIFX UNKNOWN - ")
    assert run(["doctor", "--format", "npd", *arguments]) == 2
    line = capfd.readouterr().out
    assert line.count("\n") == 1
    assert len(line.encode()) <= 81


def test_a_bug_is_unknown(
    snapshots: dict[str, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("planted\nhere")

    monkeypatch.setattr("aifx.health.check.check", fail)
    assert run(["doctor", "--replay", str(snapshots["healthy"]), "--format", "nagios"]) == 3
    line = capfd.readouterr().out
    assert line.startswith("AIFX UNKNOWN - ")
    assert "ZeroDivisionError: planted here" in line
    assert line.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("form", "code"), [("nagios", 3), ("npd", 2)])
def test_a_line_that_cannot_be_written_is_no_ok(form: str, code: int, snapshots: dict[str, Path]) -> None:
    checked = ["doctor", "--only", "memory", "--replay", str(snapshots["healthy"]), "--format", form]
    command = [sys.executable, "-m", "aifx.commands.main", *checked]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
    assert done.returncode == code


def test_who_calls() -> None:
    assert caller_of(["doctor"]) is None
    assert caller_of(["doctor", "--format", "text"]) is None
    assert caller_of(["doctor", "--only", "slurm", "--json"]) is None
    assert caller_of(["train", "--format", "npd"]) is None
    assert caller_of(["doctor", "--debug", "--only", "cpu", "--format=npd"]) is FORMATS["npd"]
    assert caller_of(["--debug", "doctor", "slurm", "prlog"]) is SLURM
    assert caller_of(["doctor", "--json", "slurm", "prolog"]) is SLURM
