"""Limits of the process: exit code 2 with what was needed, never an abort or a bug."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from program import PROGRAM, environ, probe


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("-n", "14", ["too few files", "14", "64", "ulimit -n"]),
        ("-v", "500000", ["too little memory", "488 MiB", "1024"]),
    ],
)
def test_what_a_training_needs_is_asked_for_first(tmp_path: Path, option: str, value: str, words: list[str]) -> None:
    """Below these limits asyncio printed a traceback, and OpenBLAS ended the process with 1."""
    command = ["bash", "-c", f'ulimit {option} {value}; exec "$@"', "bash", *PROGRAM, "train", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ(tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done
    error = json.loads(done.stdout)["error"]
    for word in words:
        assert word in " ".join(map(str, error.values())), error
    assert done.stderr == ""


@pytest.mark.parametrize(
    "body",
    [
        "raise MemoryError",
        "raise ImportError('libjax_common.so: failed to map segment from shared object')",
        "raise RuntimeError('std::bad_alloc')",
        "raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))",
    ],
)
def test_memory_that_a_limit_withholds_is_named(tmp_path: Path, body: str) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))"
    done = probe(tmp_path, f"{limit}\n{body}")
    assert done.returncode == 2
    assert "out of memory" in done.stderr
    assert "4096 MiB" in done.stderr
    assert "hint: ulimit -v unlimited" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_a_limit_withholds_is_named(tmp_path: Path) -> None:
    """Where the system reports it, and where TensorStore does."""
    bodies = [
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from aifx.core.files import replace_file; from pathlib import Path\n"
        "replace_file(Path('kept.json'), bytes(2000))",
        "raise ValueError(\"UNKNOWN: Failed writing: File too large [os_error_code='27']\")",
    ]
    for body in bodies:
        done = probe(tmp_path, body)
        assert done.returncode == 2, done.stderr
        assert "file too large" in done.stderr
        assert "ulimit -f" in done.stderr
