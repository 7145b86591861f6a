"""Tasks of a project's own: imported from its folder, with whatever can go wrong there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aifx.config.sections import Section
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config, read_config, task_parts

TASK = """
from pydantic import Field, model_validator
from aifx.config.sections import DataSection, ModelSection
import helper_of_the_task

class Model(ModelSection):
    width: int = Field(8, description="Features.", ge=1)
    options: dict[str, float] = {}

class Data(DataSection):
    path: str
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def in_order(self):
        if self.low > self.high:
            raise ValueError("low is above high")
        return self

class Task:
    model_section = Model
    data_section = Data

class Bare:
    pass
"""


@pytest.mark.parametrize(("name", "meant"), [("sft", "chat"), ("dpo", "preference"), ("text", "language")])
def test_the_name_of_a_part_instead_of_the_tasks(name: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a task") as refused:
        task_parts(name, {}, Project(tmp_path))
    assert refused.value.hint == f'kind = "{meant}"'
    assert f"did you mean '{meant}'?" in refused.value.why


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def make_project(root: Path, task: str = TASK, config: str = "", kind: str = "my_task:Task") -> Project:
    root.mkdir(exist_ok=True)
    (root / "aifx.toml").write_text(f'[task]\nkind = "{kind}"\n{config}')
    (root / "my_task.py").write_text(task)
    (root / "helper_of_the_task.py").write_text("")
    return Project(root)


def refusal(project: Project) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(project, environ={})
    return str(caught.value)


def test_its_sections_are_read_and_written(tmp_path: Path) -> None:
    config = '[data]\npath = "x"\n[model]\nwidth = 3\noptions = {"a b" = 1.0, c = 2.5}\n'
    project = make_project(tmp_path, config=config)
    loaded = load_config(project, environ={})
    assert loaded.values()["model"].items() >= {"width": 3, "options": {"a b": 1.0, "c": 2.5}}.items()
    (tmp_path / "config.toml").write_text(loaded.to_toml())
    assert read_config(tmp_path / "config.toml", project) == loaded


def model_section(kind: str, project: Project) -> type[Section]:
    return task_parts(kind, {}, project).sections["model"]


def test_one_class_however_often_it_is_asked_for(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    first, second = (task_parts("my_task:Task", {}, project) for _ in range(2))
    assert first.task is second.task
    assert first.sections["model"] is first.task.model_section  # type: ignore[union-attr]


def test_two_projects_with_modules_of_one_name(tmp_path: Path) -> None:
    first, second = make_project(tmp_path / "a"), make_project(tmp_path / "b", TASK.replace("width", "depth"))
    assert "width" in model_section("my_task:Task", first).model_fields
    assert "depth" in model_section("my_task:Task", second).model_fields
    assert "width" in model_section("my_task:Task", first).model_fields


def test_a_package_is_a_module_too(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("")
    (tmp_path / "my_task.py").rename(tmp_path / "tasks" / "mine.py")
    assert "width" in model_section("tasks.mine:Task", project).model_fields


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", ["data.path is not set"]),
        ('[data]\npath = "x"\n[model]\nwidht = 3\n', ["aifx.toml:6", "'width'"]),
        ('[data]\npath = "x"\n[model]\nwidth = 0\n', ["aifx.toml:6", "model.width", "1 or more"]),
        ('[data]\npath = "x"\nlow = 2.0\n', ["[data]", "low is above high"]),
    ],
)
def test_its_settings_are_checked(tmp_path: Path, config: str, words: list[str]) -> None:
    said = refusal(make_project(tmp_path, config=config))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("import nowhere_to_be_found", ["ModuleNotFoundError", "nowhere_to_be_found", "my_task.py:1"]),
        ("\n\nx = 1 / 0", ["ZeroDivisionError", "my_task.py:3"]),
        ("def f(:\n", ["SyntaxError", "my_task.py:1"]),
        ("import sys\nsys.exit(3)", ["SystemExit", "my_task.py:2"]),
        ("class Tusk: pass", ["'Task'", "'Tusk'"]),
        ("class Task: pass", ["model_section"]),
        ("class Task:\n model_section = int\n data_section = int", ["model_section"]),
        (
            TASK.replace('raise ValueError("low is above high")', "pass")
            + "\nData.model_fields\nclass Task(Bare): pass",
            ["section"],
        ),
    ],
)
def test_what_goes_wrong_in_its_module_is_told(tmp_path: Path, task: str, words: list[str]) -> None:
    said = refusal(make_project(tmp_path, task))
    assert "aifx.toml:2" in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nowhere:Task", ["no module 'nowhere'"]),
        ("my_task:", ["module:NAME"]),
        (":Task", ["module:NAME"]),
        ("../my_task:Task", ["module:NAME"]),
        ("json:Task", ["json", "'Task'"]),
    ],
)
def test_what_names_no_task_is_told(tmp_path: Path, kind: str, words: list[str]) -> None:
    said = refusal(make_project(tmp_path, kind=kind))
    assert "aifx.toml:2" in said
    for word in words:
        assert word in said


def test_a_module_with_the_name_of_another_is_told(tmp_path: Path) -> None:
    project = make_project(tmp_path, kind="json:Task")
    (tmp_path / "json.py").write_text(TASK)
    assert "name of another module" in refusal(project)


def test_a_section_of_a_project_may_take_dates(tmp_path: Path) -> None:
    task = TASK.replace("path: str", "path: str\n    since: datetime.date | None = None")
    task = "import datetime\n" + task
    project = make_project(tmp_path / "project", task, '[data]\npath = "x"\nsince = 1979-05-27\n')
    assert str(load_config(project, environ={}).data.since) == "1979-05-27"  # type: ignore[attr-defined]
    project.config_path.write_text('[task]\nkind = "my_task:Task"\n[data]\npath = 1979-05-27\n')
    with pytest.raises(ConfigError) as caught:
        load_config(project, environ={})
    what, why, hint = str(caught.value).splitlines()
    assert what.startswith("aifx.toml:4: data.path = 1979-05-27")
    assert "date" in why
    assert hint == 'hint: path = "1979-05-27"'
