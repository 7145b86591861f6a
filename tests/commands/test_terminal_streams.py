"""stdout carries the answer, stderr the rest, whatever is at their other ends."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from program import PROBE, PROGRAM, environ, probe, probe_here


def test_stdout_is_one_document_with_json(tmp_path: Path) -> None:
    body = (
        "out.log('a word'); out.print('for people'); out.table(['a'], [[1]]);"
        "out.document({'nan': float('nan'), 'deep': [{'inf': float('-inf')}], 'x': 1.5}); out.log('another');"
        "raise SystemExit(1)"
    )
    done = probe_here(tmp_path, body, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"schema_version": 1, "nan": None, "deep": [{"inf": None}], "x": 1.5}
    assert done.stderr == "a word\nanother\n"
    people = probe_here(tmp_path, body)
    assert people.stdout == "for people\na\n1\n"
    assert people.stderr == "a word\nanother\n"


def test_arrays_and_paths_are_json_too(tmp_path: Path) -> None:
    body = (
        "import numpy as np, pathlib;"
        "out.document({'a': np.float32(0.5), 'b': np.array([1.0, np.nan]), 'c': pathlib.Path('x')})"
    )
    assert json.loads(probe_here(tmp_path, body, "--json").stdout) == {
        "schema_version": 1,
        "a": 0.5,
        "b": [1.0, None],
        "c": "x",
    }


def test_floats_are_written_so_that_equal_text_is_equal_bits(tmp_path: Path) -> None:
    body = "import struct; out.document({'x': struct.unpack('<f', struct.pack('<f', 0.1))[0]})"
    assert json.loads(probe_here(tmp_path, body, "--json").stdout)["x"] == 0.10000000149011612


def test_text_is_printed_as_it_is(tmp_path: Path) -> None:
    body = (
        "out.print('[bold]:smile: ' + 'x' * 200); out.table(['name'], [['[red]' + 'y' * 200]]);"
        "out.log('[/] ' + 'z' * 200)"
    )
    done = probe_here(tmp_path, body)
    assert done.stdout == "[bold]:smile: " + "x" * 200 + "\nname\n[red]" + "y" * 200 + "\n"
    assert done.stderr == "[/] " + "z" * 200 + "\n"


@pytest.mark.parametrize(
    "writing",
    ["out.print('x' * 400)", "out.table(['a'], [['x' * 400]])", "out.write('x' * 400 + '\\n')", "print('x' * 400)"],
)
def test_a_closed_pipe_ends_quietly(tmp_path: Path, writing: str) -> None:
    """More than a pipe holds."""
    env = environ(tmp_path, PROBE=f"for i in range(1000): {writing}")
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(PROBE)} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


def test_a_verdict_survives_a_closed_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for body in ("out.print('report'); raise SystemExit(1)", "out.table(['a'], [[1]]); raise SystemExit(1)"):
        done = probe(tmp_path, body, stdout=writing)
        assert (done.returncode, done.stderr) == (1, "")
    assert probe(tmp_path, "out.document({}); raise SystemExit(1)", "--json", stdout=writing).returncode == 1
    os.close(writing)


def test_nobody_at_stderr_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = probe(tmp_path, "for i in range(9): out.log('word')\nout.print('done')", stderr=writing)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_full_stdout_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        for body in ("out.print('x')", "print('x')", "out.document({})"):
            done = probe(tmp_path, body, *(["--json"] if "document" in body else []), stdout=full)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&-"])
def test_closed_streams(tmp_path: Path, redirection: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(PROGRAM)} --help {redirection}"],
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_question_without_a_stdin_takes_the_default(tmp_path: Path) -> None:
    command = f"{shlex.join(PROGRAM)} init new --template language-model <&-"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "aifx.toml").is_file()


def test_a_document_is_json_in_any_locale(tmp_path: Path) -> None:
    """JSON has no \\xef."""
    done = probe(tmp_path, "out.document({'n': 'naïve 4 µs ▂'})", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)["n"] == "naïve 4 µs ▂"


def test_any_locale_will_do(tmp_path: Path) -> None:
    done = probe(tmp_path, "out.print('naïve ▂▄ \\udcff'); out.log('naïve')", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.startswith("na\\xefve")


def test_what_user_code_prints_stands_beside_no_document(tmp_path: Path) -> None:
    done = probe_here(tmp_path, "print('loading'); out.document({'answer': 1})", "--json")
    assert json.loads(done.stdout)["answer"] == 1
    assert done.stderr == "loading\n"
