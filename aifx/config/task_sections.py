"""Which models of `[model]` and `[data]` belong to a task; a project's own task is imported from its folder."""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.config.sections import (
    LanguageDataSection,
    LanguageModelSection,
    Section,
    VisionDataSection,
    VisionModelSection,
)
from aifx.core.errors import ConfigError, did_you_mean
from aifx.core.project import Project

BUNDLED_KINDS: dict[str, tuple[type[Section], type[Section]]] = {
    "language": (LanguageModelSection, LanguageDataSection),
    "vision": (VisionModelSection, VisionDataSection),
}

BUNDLED_METRICS: dict[str, tuple[str, ...]] = {
    "language": ("loss", "perplexity", "bits_per_byte", "tokens", "bytes"),
    "vision": ("loss", "accuracy", "macro_f1", "images"),
}
"""Numbers that a bundled task reports of any data; `vision` also reports `per_class.NAME.METRIC`."""

PER_CLASS_METRICS = ("precision", "recall", "f1", "images")


@dataclass(frozen=True)
class TaskSections:
    """The models of `[model]` and `[data]` that a project's own task has."""

    kind: str
    model: type[Section]
    data: type[Section]


_from_projects: set[str] = set()  # top-level modules that were imported from a project's folder


def section_types(kind: str, project: Project | None) -> tuple[type[Section], type[Section]]:
    """The models of `[model]` and `[data]`. Raises ConfigError.

    The bundled kinds need neither jax nor a project. `module:Class` is imported and must have the class attributes
    `model_section` and `data_section`.
    """
    if ":" not in kind:
        if kind not in BUNDLED_KINDS:
            raise ConfigError(
                f"task.kind = {kind!r} is no task",
                f"a task of your own is `module:Class`; {did_you_mean(kind, BUNDLED_KINDS)}",
                'kind = "language"',
            )
        return BUNDLED_KINDS[kind]
    task = import_task(kind, project)
    return _section_of(task, kind, "model_section"), _section_of(task, kind, "data_section")


def import_task(kind: str, project: Project | None) -> Any:
    """The class that `module:Class` names, imported with the project's folder first. Raises ConfigError."""
    module_name, _, class_name = kind.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not class_name.isidentifier():
        raise ConfigError(
            f"task.kind = {kind!r} is no task",
            "a task of your own is written `module:Class`",
            'kind = "my_task:MyTask"',
        )
    try:
        with redirect_stdout(sys.stderr):  # what a module prints is not part of aifx's answer
            module = _import_module(module_name, project)
    except KeyboardInterrupt:
        raise
    except ConfigError:
        raise
    except BaseException as error:  # a module may raise anything while it is imported, SystemExit too
        raise ConfigError(
            f"task.kind = {kind!r} cannot be imported",
            _why(error, module_name, project),
            f"a file {module_name.split('.')[0]}.py in {project.root}"
            if project and isinstance(error, ModuleNotFoundError)
            else "",
        ) from error
    if not hasattr(module, class_name):
        classes = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise ConfigError(
            f"task.kind = {kind!r}: {module_name} has no {class_name!r}", did_you_mean(class_name, classes)
        )
    return getattr(module, class_name)


def _import_module(name: str, project: Project | None) -> Any:
    if project is None:
        return importlib.import_module(name)
    root = str(project.root)
    if root not in sys.path:
        sys.path.insert(0, root)
        importlib.invalidate_caches()
    top = name.split(".")[0]
    ours = any((project.root / top).with_suffix(suffix).exists() for suffix in (".py", ""))
    if ours and (loaded := sys.modules.get(top)) is not None and not _lies_in(loaded, project.root):
        if top not in _from_projects:
            raise ConfigError(
                f"{project.root / top}.py has the name of another module",
                f"{top!r} is {getattr(loaded, '__file__', None) or 'built into Python'}",
                "give the file another name, and `task.kind` with it",
            )
        for known in [m for m in sys.modules if m == top or m.startswith(f"{top}.")]:
            del sys.modules[known]  # the same name in another project, earlier in this process
        sys.path.remove(root)
        sys.path.insert(0, root)
    module = importlib.import_module(name)
    if ours:
        _from_projects.add(top)
    return module


def _lies_in(module: Any, root: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place and Path(place).resolve().is_relative_to(root.resolve()) for place in places)


def _why(error: BaseException, module_name: str, project: Project | None) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
        return f"there is no module {error.name!r}" + (f" in {project.root}" if project else "")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if project and Path(f.filename).is_relative_to(project.root)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {text}" if frames else text


def _section_of(task: Any, kind: str, attribute: str) -> type[Section]:
    section = getattr(task, attribute, None)
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise ConfigError(
            f"task.kind = {kind!r} has no {attribute}",
            "a task says how its section reads: a class attribute, a subclass of aifx.config.sections.Section",
            f"{attribute} = MySection",
        )
    return section
