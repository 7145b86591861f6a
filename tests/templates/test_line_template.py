"""The line of the template language-model: from a folder of texts to a promoted model."""

import os
from pathlib import Path

import inprocess

from aifx.lines.file import read_line


def test_the_line_of_a_new_project_has_no_findings(tmp_path: Path) -> None:
    made = inprocess.run(["init", "book", "--template", "language-model", "--yes"], tmp_path, dict(os.environ))
    assert made.returncode == 0, made.stderr
    checked = inprocess.run(["line", "check"], tmp_path / "book", dict(os.environ))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    stations = read_line(tmp_path / "book/line.toml").stations
    assert list(stations) == ["data", "train", "judge", "push", "promote"]
    assert all(stations[later].parents for later in list(stations)[1:])
