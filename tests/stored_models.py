"""Versions of models whose names alone matter."""

from __future__ import annotations

import secrets
from pathlib import Path

from aifx.core.artifact import Artifact, seal, seal_files
from aifx.core.project import Project
from aifx.registry.acts import Caller, promote, push
from aifx.registry.roots import KIND, VERSION, open_root


def push_empty(project: Project, name: str, alias: str | None = None) -> str:
    """Push a version without arrays, which no other equals, and let an alias mean it. Returns its digest."""

    def write(folder: Path) -> Artifact:
        (folder / "config.toml").write_text(f"# {secrets.token_hex(8)}")
        artifact = Artifact(KIND, VERSION, {}, seal_files(folder, [folder / "config.toml"]))
        seal(folder, artifact)
        return artifact

    root, caller = open_root(None, project), Caller("ann")
    pushed = push(root, name, write, {}, caller)
    if alias is not None:
        promote(root, f"{name}@{pushed.digest}", alias, caller)
    assert pushed.digest is not None
    return pushed.digest
