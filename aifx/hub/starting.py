"""A project that begins with an imported model: an `aifx.toml` that fine-tunes it, and what `aifx import` reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aifx.config.sections import Section
from aifx.config.toml import to_toml
from aifx.core.errors import ExitCode
from aifx.core.files import remove_temporary
from aifx.core.json_files import write_text
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.data.text import TOKENIZER_FILE
from aifx.hub.assets import PICTURES
from aifx.hub.comparison import LogitComparison
from aifx.hub.importing import ImportedRun
from aifx.kinds import read_config


@dataclass(frozen=True)
class Start:
    """The beginning of a project with a model of one task.

    Attributes:
        use: a command that uses the model without training it; `{run}` is its run.
        data: what the user puts where, for `aifx train`.
        sections: values by section and key, which come before those of the model's run; None leaves a key out.
    """

    use: str
    data: str
    sections: Mapping[str, Mapping[str, Any]]


STARTS: Mapping[str, Start] = {
    "language": Start(
        'aifx generate --run {run} --prompt "Once upon a time"',
        "text into data/*.txt",
        {
            "data": {"train": ["data/*.txt"]},
            "train": {"num_steps": 1000, "global_batch_size": 8},
            "optimizer": {"learning_rate": 2e-5, "weight_decay": 0.0},
            "schedule": {"warmup_steps": 20},
        },
    ),
    "vision": Start(
        "aifx predict PICTURE --run {run}",
        f"pictures into {PICTURES}, in a folder for each class",
        {
            "finetune": {"freeze": "backbone"},
            "data": {"path": PICTURES, "classes": None},
            "train": {"num_steps": 200, "global_batch_size": 32},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"warmup_steps": 20},
        },
    ),
}
"""By the `task.kind` of the model's run."""

_SECTIONS = ("project", "task", "finetune", "model", "objective", "data", "train", "optimizer", "schedule")

_HEADER = """\
# Written by `aifx import`. `aifx train` trains the model further. First, put {data}.
# docs/config.md lists all keys.
"""


def start_project(project: Project, run: RunDirectory) -> None:
    """Write the `aifx.toml` of a project that has none, whose model is that of `run`."""
    config = read_config(run.config, project, environ={})
    start = STARTS[config.task.kind]
    ours = {"project": {"name": run.name}, "finetune": {"base": run.name}}
    sections: dict[str, dict[str, Any]] = {}
    for name in _SECTIONS:
        found = {**changed_values(getattr(config, name)), **ours.get(name, {}), **start.sections.get(name, {})}
        if kept := {key: value for key, value in found.items() if value is not None}:
            sections[name] = kept
    tokenizer = run.assets / TOKENIZER_FILE
    if tokenizer.exists():
        sections["data"]["tokenizer"] = str(tokenizer.relative_to(project.root))
    remove_temporary(project.root)
    write_text(project.config_path, _HEADER.format(data=start.data) + "\n" + to_toml(sections, None))


def changed_values(section: Section) -> dict[str, Any]:
    """The values of a section that are not the defaults, as JSON has them."""
    defaults = type(section).model_construct().model_dump(mode="json")
    return {key: value for key, value in section.model_dump(mode="json").items() if value != defaults.get(key)}


@dataclass(frozen=True)
class ImportDocument(Result):
    """The document that `aifx import --json` prints.

    Attributes:
        started_project: the `aifx.toml` that it wrote, outside of a project.
        check: with --check, otherwise null.
    """

    imported: ImportedRun
    started_project: str | None
    check: LogitComparison | None

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.check is None or self.check.passed else ExitCode.VERDICT

    def next_steps(self) -> tuple[str, str]:
        """The data that fine-tunes the model, in words, and a command that uses the run."""
        start = STARTS[self.imported.task]
        return start.data, start.use.format(run=self.imported.run)
