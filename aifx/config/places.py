"""The place of a project's models, read without the rest of its configuration.

A promotion takes a quarter of a second, and to import the sections of all tasks would take half as long again. A
rollback is an emergency, which a mistake elsewhere in aifx.toml must not stop.
"""

from __future__ import annotations

import os
from dataclasses import replace

from aifx.core.errors import nearest
from aifx.core.files import read_file
from aifx.core.parsing import parse_toml
from aifx.core.project import Project


def with_registry(project: Project) -> Project | None:
    """The project with `[registry]` of its aifx.toml; None if only the whole configuration can tell what that is.

    That is so if the environment changes it, if it holds anything but texts in known keys, or if its name is misspelt.
    """
    if any(name.startswith("AIFX_REGISTRY__") for name in os.environ):
        return None
    try:
        document = parse_toml(read_file(project.config_path).decode())
    except (OSError, ValueError):
        return None
    section = document.get("registry", {})
    if "registry" not in document and nearest("registry", document):
        return None
    if not isinstance(section, dict) or not section.keys() <= {"root", "trusted_keys"}:
        return None
    root, keys = section.get("root", project.registry), section.get("trusted_keys", [])
    if not isinstance(root, str) or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        return None
    return replace(project, registry=root, trusted_keys=tuple(keys))
