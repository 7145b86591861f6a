"""`aifx bench show`: a report on a terminal of 80 columns, on one that has no colours or no Unicode, and in a file."""

import os
import re
import subprocess
import sys

import bench_reports as made
import pytest

from aifx.benchmarking.results import Measured, Result, write_report
from aifx.commands.console.chart import bar, shares, sparkline
from aifx.commands.main import run
from aifx.core.units import share


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("bench") / "report.json"
    write_report(made.report(*made.hardware(), *made.kernels(), *made.train()), found)
    return str(found)


def show(path, capsys) -> str:
    assert run(["bench", "show", str(path)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def terminal(monkeypatch):
    """stdout as a terminal of 80 columns without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda _: True))


@pytest.mark.usefixtures("terminal")
def test_a_terminal_has_pictures_of_80_columns(path, capsys):
    text = show(path, capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    (memory,) = [line for line in lines if line.startswith("memory triad")]
    assert "█████" not in memory.split()[2]
    assert memory.split()[2][0] == "█"
    assert memory.split()[2][-1] in "▁▂"
    assert "at 16 KiB" in memory
    assert "at 1 GiB" in memory
    assert "collective all_reduce (bus)" in text
    steps = next(line for line in lines if set(line) <= set("█▓▒░") and len(line) > 70)
    assert len(steps) == 76
    assert steps.count("▓") == pytest.approx(0.52 * 76, abs=2)  # backward, without colours
    assert "▓ backward" in text
    assert re.search(r"host.*:   data wait", text)
    implementation = next(result for result in made.kernels() if result.params["implementation"] == "pallas_triton")
    line = next(line for line in lines if "train_2k pallas_triton" in line)
    assert line.endswith(f"{bar(implementation.roofline_fraction, 8):8} {share(implementation.roofline_fraction):>6}")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_without_unicode(path, capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.encoding", "ascii")
    text = show(path, capsys)
    assert not set(text) & set("█▓▒░▁▂▃▄▅▆▇")
    assert "= backward" in text
    assert "#####   " in text


@pytest.mark.usefixtures("terminal")
def test_a_narrow_terminal_breaks_no_words(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = show(path, capsys).splitlines()
    assert max(map(len, lines[1:-1])) <= 40, "all but the machine's name and the note, which the terminal folds"
    at = lines.index("linear_cross_entropy float32")
    assert lines[at + 1] == "  train_2k reference"
    assert lines[at + 2].startswith("    46.5 ms ±0.9%, 21.5 GFLOP/s (24 %)")
    assert "kernels: median, rate (of roofline)" in lines
    assert any(line.startswith("memory triad █") for line in lines)


@pytest.mark.usefixtures("terminal")
def test_a_comparison_too_wide_for_a_terminal_breaks_no_words(path, capsys):
    assert run(["bench", "compare", path, path]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("kernels.linear_cross_entropy train_2k reference float32")
    assert lines[at + 1].startswith("  unsure, +0.0% (")
    told = " ".join(line.strip() for line in lines[at + 1 : at + 3])
    assert "): A 46.5 ms, B 46.5 ms; 3 and 3 launches" in told
    assert max(map(len, lines[3:-1])) <= 80


def test_units_are_spelt_where_there_is_no_unicode(path):
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "aifx.commands.main", "bench", "show", path]
    text = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert "4.28 us" in text
    assert "\\x" not in text
    header = next(line for line in text.splitlines() if line.startswith("hardware"))
    dispatch = next(line for line in text.splitlines() if line.startswith("dispatch"))
    assert header.index("+-") + 2 == len(dispatch)


def test_parts_that_are_longer_than_the_step_are_told(tmp_path, capsys):
    found = tmp_path / "report.json"
    write_report(made.report(made.result("train.loop", 0.09, noise=0.0), *made.train(0.12)[3:]), found)
    assert re.search(r"optimizer \S+ ms .*; the parts.* \S+ ms longer;", show(found, capsys))


def test_what_is_not_known_is_left_out(tmp_path, capsys):
    found = tmp_path / "report.json"
    write_report(made.report(machine={"host": "node-7"}, notes=[]), found)
    made_at, *rest = show(found, capsys).split("\n")
    assert re.fullmatch(r"2026-11-2\d \d\d:\d\d, 3f2a9c1d, 3 launches", made_at)
    assert rest == ["node-7", "", "nothing was measured", ""]


def test_a_file_has_a_line_a_result_and_no_pictures(path, capsys):
    text = show(path, capsys)
    assert not set(text) & set("█▓▒░▁▂▃▄▅▆▇\x1b")
    assert len([line for line in text.splitlines() if line.startswith("memory ")]) == sum(
        result.name == "hardware.memory" for result in made.hardware()
    )
    assert "memory triad 1 GiB" in text
    assert "backward" in next(line for line in text.splitlines() if line.startswith("step 120 ms: forward"))


def test_bars():
    assert bar(0, 8) == ""
    assert bar(0.5, 8) == "████"
    assert bar(1.7, 8) == bar(1, 8) == "████████"
    assert bar(1 / 16, 8) == "▌"
    assert bar(0.5, 8, ascii_only=True) == "####"
    assert sparkline([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""
    assert shares([0.333, 0.333, 0.334], 10) == [3, 4, 3]
    assert sum(shares([0.01] * 100, 76)) == 76
    assert shares([0.9, 0.9], 10) == [9, 1]


def test_a_single_sample_claims_no_precision(tmp_path, capsys):
    seen = [Measured(name=f"startup.{name}", samples_s=s) for name, s in (("first", [25.0]), ("help", [0.2, 0.21]))]
    write_report(made.report(*(Result.of([found]) for found in seen)), tmp_path / "report.json")
    lines = {line.split()[0]: line.split() for line in show(tmp_path / "report.json", capsys).splitlines() if line}
    assert lines["first"][-1] == "-"
    assert lines["help"][-1].endswith("%")
