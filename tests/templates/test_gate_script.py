"""ci/gate.sh of a fresh project, run as CI runs it: by its exit code, with `aifx` on PATH."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import inprocess
import pytest

ASKS_THE_TEST = """\
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", int(os.environ["TEST_PORT"]))) as test, test.makefile("rw") as both:
    print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]), file=both, flush=True)
    code, out, err = json.loads(both.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
"""An `aifx` that has its command run inside the process of the test, where everything is imported already."""
SMALL_DECODER = {
    "AIFX_MODEL__EMBED_DIM": "16",
    "AIFX_MODEL__NUM_HEADS": "2",
    "AIFX_MODEL__NUM_LAYERS": "1",
    "AIFX_DATA__VOCAB_SIZE": "300",
}
SMALL_MLP = {"AIFX_MODEL__WIDTH": "4", "AIFX_SCHEDULE__WARMUP_STEPS": "0"}
SMALL_TABLE_MODEL = SMALL_MLP | {"AIFX_MODEL__NUM_LAYERS": "1"}
SMALL_NETWORK = {"AIFX_MODEL__CHANNELS": "[4]", "AIFX_TRAIN__GLOBAL_BATCH_SIZE": "16"}


class Machine:
    """A machine of CI's: a fresh project, and `aifx` on PATH."""

    def __init__(self, root: Path, template: str, *, asks_doctor: bool = False) -> None:
        """`asks_doctor` if the machine is examined. Otherwise it is healthy: examining it takes as long as a run."""
        self.template, self.asks_doctor = template, asks_doctor
        self.bin = root / "bin"
        self.bin.mkdir()
        (self.bin / "asks.py").write_text(ASKS_THE_TEST)
        self.install(f'#!/bin/sh\nexec {sys.executable} -IS {self.bin}/asks.py "$@"\n')
        own = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(root)}
        self.environ = {**os.environ, **own}
        # Whether the machine that runs the tests is healthy is no matter of theirs.
        site = root / ".config/aifx/health.toml"
        site.parent.mkdir(parents=True)
        site.write_text('[[skip]]\nid = "*"\nreason = "a test"\n')
        self.project = root / "project"
        made = inprocess.run(["init", str(self.project), "--template", template, "--yes"], root, self.environ)
        assert made.returncode == 0, made.stderr

    def install(self, script: str) -> None:
        (self.bin / "aifx").write_text(script)
        (self.bin / "aifx").chmod(0o755)

    def run(self, cwd: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `command`, and each `aifx` that it calls in this process."""
        with socket.create_server(("127.0.0.1", 0)) as calls:
            calls.settimeout(0.05)
            environ = {**self.environ, **environ, "TEST_PORT": str(calls.getsockname()[1])}
            with subprocess.Popen(
                command, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                while process.poll() is None:
                    with suppress(TimeoutError):
                        self._answer(calls.accept()[0])
                out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _answer(self, call: socket.socket) -> None:
        call.settimeout(None)
        with call, call.makefile("rw") as both:
            args, cwd, environ = json.loads(both.readline())
            if args == ["doctor", "--json"] and not self.asks_doctor:
                done = subprocess.CompletedProcess(args, 0, '{"status": "healthy"}\n', "")
            else:
                done = inprocess.run(args, Path(cwd), environ)
            print(json.dumps([done.returncode, done.stdout, done.stderr]), file=both, flush=True)

    def short_gate(self, gate: str) -> subprocess.CompletedProcess[str]:
        """Three steps of a model that is as small as it gets."""
        of_template = {
            "custom-task": SMALL_MLP,
            "fine-tune": {**SMALL_DECODER, "AIFX_DATA__VOCAB_SIZE": "2048"},
            "language-model": SMALL_DECODER,
            "series": SMALL_MLP,
            "tabular": SMALL_TABLE_MODEL,
            "vision-inspection": SMALL_NETWORK,
        }
        small = of_template[self.template]
        return self.gate(GATE_STEPS="3", GATE_BASE_STEPS="3", GATE=gate, AIFX_TRAIN__VALIDATE_EVERY="0", **small)

    def gate(self, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.project.parent, str(self.project / "ci/gate.sh"), **environ)

    def runs(self) -> list[str]:
        return sorted(p.name for p in (self.project / "runs").glob("*"))


def documents(text: str) -> list[dict[str, object]]:
    found, decoder, at = [], json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@pytest.mark.representative("a template's gate")
def test_a_run_that_passes_is_removed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "language-model", asks_doctor=True)
    passed = machine.short_gate("bits_per_byte <= 8")
    assert passed.returncode == 0, passed.stderr
    machine_report, trained, evaluated = documents(passed.stdout)
    assert machine_report["status"] == "healthy"
    assert (trained["status"], trained["step"]) == ("completed", 3)
    assert [gate["expr"] for gate in evaluated["gates"]] == ["bits_per_byte <= 8"]  # type: ignore[attr-defined]
    assert machine.runs() == []
    assert "kept" not in passed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "gate"),
    [
        ("custom-task", "mean_absolute_error <= 12"),
        pytest.param("fine-tune", "perplexity <= 5000", marks=pytest.mark.slow),
        ("series", "mape <= 20"),
        ("tabular", "per_class.0.recall >= 0"),
    ],
)
def test_other_templates_pass_a_gate(tmp_path: Path, template: str, gate: str) -> None:
    machine = Machine(tmp_path, template)
    passed = machine.short_gate(gate)
    assert passed.returncode == 0, passed.stderr
    assert machine.runs() == []


@pytest.mark.slow
@pytest.mark.parametrize("template", ["custom-task", "fine-tune", "language-model", "series", "vision-inspection"])
def test_the_gate_that_a_template_ships_passes(tmp_path: Path, template: str) -> None:
    """A training that is short but has to learn. `make wheel` runs that of tabular."""
    passed = Machine(tmp_path, template).gate()
    assert passed.returncode == 0, passed.stderr


@pytest.mark.slow
def test_a_run_that_fails_is_kept_to_be_looked_at(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "vision-inspection")
    failed = machine.short_gate("accuracy >= 1")
    assert failed.returncode == 1, failed.stderr
    assert len(machine.runs()) == 1
    (advice,) = [line for line in failed.stderr.splitlines() if line.startswith("the run is kept: ")]
    done = machine.run(machine.project, *advice.partition(": ")[2].split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("verdict", "trains"), [(0, True), (1, False), (2, True)])
def test_an_unhealthy_machine_trains_nothing(tmp_path: Path, verdict: int, trains: bool) -> None:
    """The script alone: this `aifx` writes down its command, and its doctor answers with `verdict`."""
    machine = Machine(tmp_path, "language-model")
    machine.install(
        f'#!/bin/sh\necho "$1" >>{tmp_path}/asked\n[ "$1" != train ] || mkdir -p "runs/$3"\n'
        f'[ "$1" != doctor ] || exit {verdict}\n'
    )
    done = machine.short_gate("loss <= 99")
    assert done.returncode == (0 if trains else 1), done.stderr
    assert (tmp_path / "asked").read_text().split() == ["doctor", *(["train", "eval"] if trains else [])]
