"""ci/gate.sh of a fresh project, run as CI runs it: by its exit code, with `aifx` on PATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AIFX = f"""\
#!/bin/sh
exec {sys.executable} -c 'import sys; sys.argv[0] = "aifx"; from aifx.commands.main import main; main()' "$@"
"""
SMALL_DECODER = {
    "AIFX_MODEL__EMBED_DIM": "16",
    "AIFX_MODEL__NUM_HEADS": "2",
    "AIFX_MODEL__NUM_LAYERS": "1",
    "AIFX_DATA__VOCAB_SIZE": "300",
}
SMALL_NETWORK = {"AIFX_MODEL__CHANNELS": "[4]", "AIFX_TRAIN__GLOBAL_BATCH_SIZE": "16"}


class Machine:
    """A machine of CI's: a fresh project, and `aifx` on PATH."""

    def __init__(self, root: Path, template: str) -> None:
        self.template = template
        self.bin = root / "bin"
        self.bin.mkdir()
        self.install(AIFX)
        own = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(root)}
        self.environ = {**os.environ, **own}
        # Whether the machine that runs the tests is healthy is no matter of theirs.
        site = root / ".config/aifx/health.toml"
        site.parent.mkdir(parents=True)
        site.write_text('[[skip]]\nid = "*"\nreason = "a test"\n')
        self.project = root / "project"
        made = self.run(root, "aifx", "init", str(self.project), "--template", template, "--yes")
        assert made.returncode == 0, made.stderr

    def install(self, script: str) -> None:
        (self.bin / "aifx").write_text(script)
        (self.bin / "aifx").chmod(0o755)

    def run(self, cwd: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env={**self.environ, **environ}, capture_output=True, text=True, check=False
        )

    def short_gate(self, gate: str) -> subprocess.CompletedProcess[str]:
        """Three steps of a model that is as small as it gets."""
        small = {"language-model": SMALL_DECODER, "vision-inspection": SMALL_NETWORK}[self.template]
        return self.gate(GATE_STEPS="3", GATE=gate, AIFX_TRAIN__VALIDATE_EVERY="0", **small)

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


@pytest.mark.parametrize(
    ("template", "low", "high"),
    [
        ("language-model", "bits_per_byte <= 8", "bits_per_byte <= 1"),
        ("vision-inspection", "accuracy >= 0", "accuracy >= 1"),
    ],
)
def test_the_verdict_is_the_exit_code(tmp_path: Path, template: str, low: str, high: str) -> None:
    machine = Machine(tmp_path, template)
    passed = machine.short_gate(low)
    assert passed.returncode == 0, passed.stderr
    machine_report, trained, evaluated = documents(passed.stdout)
    assert machine_report["status"] == "healthy"
    assert (trained["status"], trained["step"]) == ("completed", 3)
    assert [gate["expr"] for gate in evaluated["gates"]] == [low]  # type: ignore[attr-defined]
    assert machine.runs() == []  # nothing is left of a run that passed
    assert "kept" not in passed.stderr
    failed = machine.short_gate(high)
    assert failed.returncode == 1, failed.stderr
    assert len(machine.runs()) == 1  # kept, to be looked at
    (advice,) = [line for line in failed.stderr.splitlines() if line.startswith("the run is kept: ")]
    shown = machine.run(machine.project, *advice.partition(": ")[2].split())
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(("verdict", "trains"), [(0, True), (1, False), (2, True)])
def test_an_unhealthy_machine_trains_nothing(tmp_path: Path, verdict: int, trains: bool) -> None:
    machine = Machine(tmp_path, "language-model")
    doctor = f'if [ "$1" = doctor ]; then echo "$@" >> {tmp_path}/asked; exit {verdict}; fi\n'
    machine.install(AIFX.replace("exec", f"{doctor}exec", 1))
    done = machine.short_gate("loss <= 99")
    assert done.returncode == (0 if trains else 1), done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == ["doctor --json"]
    assert (machine.project / "runs").exists() == trains


@pytest.mark.slow
@pytest.mark.parametrize("template", ["language-model", "vision-inspection"])
def test_a_fresh_project_passes_its_own_gate(tmp_path: Path, template: str) -> None:
    done = Machine(tmp_path, template).gate()
    assert done.returncode == 0, done.stdout + done.stderr
