"""Ends of commands: exit codes, reports of bugs, operations that the machine refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from program import PROBE, assert_three_lines, environ, probe, probe_here

import aifx


def test_exit_codes_of_failures(tmp_path: Path) -> None:
    codes = {
        "pass": 0,
        "raise SystemExit(1)": 1,
        "raise AifxError('a', 'b', 'c')": 2,
        "raise AifxError('a', 'b', 'c', exit_code=ExitCode.VERDICT)": 1,
        "raise AifxError('a', 'b', 'c', exit_code=ExitCode.PREEMPTED)": 75,
        "raise KeyboardInterrupt": 130,
        "raise KeyError('x')": 70,
        "assert 1 == 2": 70,
        "raise BrokenPipeError": 70,  # not of stdout
        "class Odd(Exception):\n def __str__(self): raise ValueError\nraise Odd": 70,
        "raise RecursionError": 70,
        "import typer; raise typer.Exit(1)": 1,
        "raise SystemExit('text')": 2,
        "raise SystemExit": 0,
    }
    assert {body: probe_here(tmp_path, body).returncode for body in codes} == codes


def test_a_bug_leaves_a_report_and_no_traceback(tmp_path: Path) -> None:
    done = probe_here(tmp_path, "secret = 1; {}['the key']")
    assert done.returncode == 70
    assert_three_lines(done.stderr)
    assert "KeyError" in done.stderr
    assert "Traceback" not in done.stderr
    (report,) = (tmp_path / "cache" / "reports").iterdir()
    assert str(report) in done.stderr
    text = report.read_text()
    for word in ("Traceback", "KeyError: 'the key'", aifx.__version__, "probe", "python "):
        assert word in text


def test_a_bug_is_one_document_with_json(tmp_path: Path) -> None:
    done = probe_here(tmp_path, "out.document({'half': 1}); {}['the key']", "--json")
    assert done.returncode == 70
    document = json.loads(done.stdout)
    assert set(document) == {"schema_version", "error"}
    assert document["error"]["exit_code"] == 70
    assert done.stderr == ""


@pytest.mark.parametrize("where", ["option", "variable"])
def test_the_traceback_is_there_for_who_asks(tmp_path: Path, where: str) -> None:
    args, env = (["--debug"], {}) if where == "option" else ([], {"AIFX_DEBUG": "1"})
    done = probe_here(tmp_path, "{}['the key']", *args, env=env)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in probe_here(tmp_path, "{}['the key']", env={"AIFX_DEBUG": "0"}).stderr


def test_a_bug_without_a_home_still_leaves_a_report(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    env = {"AIFX_CACHE_DIR": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    done = probe(tmp_path, "{}['the key']", env=env)
    assert done.returncode == 70
    (report,) = (tmp_path / "tmp").iterdir()
    assert str(report) in done.stderr


MACHINE = {
    "raise OSError(errno.ENOSPC, 'No space left on device', '/data/x')": ["disk is full", "/data/x", "df -h"],
    "raise OSError(errno.EDQUOT, 'Disk quota exceeded', '/data/x')": ["disk is full"],
    "raise ValueError('RESOURCE_EXHAUSTED: write: No space left on device')": ["disk is full"],
    "raise ExceptionGroup('g', [ValueError(), OSError(errno.ENOSPC, 'x')])": ["disk is full"],
    "raise MemoryError": ["out of memory", "gradient_accumulation"],
    "class XlaRuntimeError(RuntimeError): pass\nraise XlaRuntimeError('RESOURCE_EXHAUSTED: 9 GiB')": [
        "9 GiB",
        "gradient_accumulation",
    ],
    "open('/proc/version', 'w')" if os.geteuid() else "open('/proc/1/nothing/here', 'w')": [],
    "raise PermissionError(errno.EACCES, 'Permission denied', '/data/x')": ["/data/x", "permission denied", "ls -ld"],
    "raise OSError(errno.EROFS, 'Read-only file system', '/data/x')": ["/data/x", "read-only"],
    "import os, shutil; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); os.getcwd()": ["working directory"],
}


@pytest.mark.parametrize("body", [body for body, words in MACHINE.items() if words])
def test_what_the_machine_refuses_is_no_bug_of_ours(tmp_path: Path, body: str) -> None:
    done = probe_here(tmp_path, body)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    for word in MACHINE[body]:
        assert word in done.stderr.lower() or word in done.stderr


def test_an_interrupt_ends_with_130(tmp_path: Path) -> None:
    body = "print('ready', flush=True)\nimport time\ntime.sleep(600)"
    process = subprocess.Popen(
        PROBE, env=environ(tmp_path, PROBE=body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "error: interrupted\n"
