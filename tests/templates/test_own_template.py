"""The template of docs/own-template.md, as it is on the page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import inprocess
from documented import blocks


def test_the_documented_template_makes_a_project(tmp_path: Path) -> None:
    template = tmp_path / "our-template"
    template.mkdir()
    (template / "copier.yml").write_text(blocks("own-template", "yaml")[0])
    (template / "aifx.toml.jinja").write_text(blocks("own-template", "toml")[0])
    (template / "notes.txt").write_text("copied")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/moby.txt").write_text("Call me Ishmael. " * 100)
    answers = ("--answer", "texts=../texts/*.txt", "--answer", "size=large", "--yes")
    made = inprocess.run(["init", "novels", "--template", str(template), *answers], tmp_path, os.environ)
    assert made.returncode == 0, made.stderr
    assert "next: aifx config check" in made.stderr
    project = tmp_path / "novels"
    assert sorted(path.name for path in project.iterdir()) == ["aifx.toml", "notes.txt"]
    checked = inprocess.run(["config", "check"], project, os.environ)
    assert checked.returncode == 0, checked.stderr
    config = json.loads(inprocess.run(["config", "show", "--json"], project, os.environ).stdout)["config"]
    assert (config["project"]["name"], config["model"]["num_layers"]) == ("novels", 12)
