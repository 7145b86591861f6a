"""The place of the models, which is read without the rest of the configuration, is the one that all of it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from aifx.config.places import with_registry
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config

PLACED = '[registry]\nroot = "s3://bucket/models"\ntrusted_keys = ["ann.pem.pub"]\n'


@pytest.mark.parametrize(
    "text", ["", PLACED, 'registry.root = "a"', "[registry]\n", '[task]\nkind = "tabular"\n' + PLACED]
)
def test_it_is_that_of_the_whole_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "aifx.toml").write_text(text)
    project = Project(tmp_path)
    assert with_registry(project) == load_config(project, environ={}).apply_to(project)


@pytest.mark.parametrize("text", ["[regsitry]\n", "registry = 3", "[registry]\nroot = 3", "[registry]\nrot = 'a'", "["])
def test_a_mistake_in_it_is_left_to_the_whole_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "aifx.toml").write_text(text)
    assert with_registry(Project(tmp_path)) is None
    with pytest.raises(ConfigError):
        load_config(Project(tmp_path), environ={})


def test_what_the_environment_says_is_left_to_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aifx.toml").write_text(PLACED)
    monkeypatch.setenv("AIFX_REGISTRY__ROOT", "elsewhere")
    assert with_registry(Project(tmp_path)) is None
    monkeypatch.delenv("AIFX_REGISTRY__ROOT")
    (tmp_path / "aifx.toml").write_text(f"{PLACED}[train]\nnum_steps = 'mistaken'\n")
    assert getattr(with_registry(Project(tmp_path)), "registry", None) == "s3://bucket/models"
