"""A project that begins with an imported model: an `aifx.toml` that fine-tunes it."""

from __future__ import annotations

from typing import Any

from aifx.config import Config, read_config
from aifx.config.toml import to_toml
from aifx.core.json_files import write_text
from aifx.core.project import Project, RunDirectory
from aifx.data.text import TOKENIZER_FILE

_HEADER = """\
# Written by `aifx import`. `aifx generate` works at once. `aifx train` trains the model further, on the files that
# [data] names: put text there first. docs/config.md lists all keys.
"""


def start_project(project: Project, run: RunDirectory) -> None:
    """Write the `aifx.toml` of a project that has none, whose model is that of `run`."""
    config = read_config(run.config, project, environ={})
    tokenizer = str((run.assets / TOKENIZER_FILE).relative_to(project.root))
    sections: dict[str, dict[str, Any]] = {
        "project": {"name": run.name},
        "finetune": {"base_run": run.name},
        "model": changed_values(config, "model"),
        "data": {"train": ["data/*.txt"], **changed_values(config, "data"), "tokenizer": tokenizer},
        "train": {**changed_values(config, "train"), "num_steps": 1000, "global_batch_size": 8},
        "optimizer": {"learning_rate": 2e-5, "weight_decay": 0.0},
        "schedule": {"warmup_steps": 20},
    }
    write_text(project.config_path, _HEADER + "\n" + to_toml(sections, None))


def changed_values(config: Config, name: str) -> dict[str, Any]:
    """The values of a section that are not the defaults, as JSON has them."""
    section = getattr(config, name)
    defaults = type(section).model_construct().model_dump(mode="json")
    return {key: value for key, value in section.model_dump(mode="json").items() if value != defaults.get(key)}
