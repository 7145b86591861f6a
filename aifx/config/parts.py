"""The parts of a task that a configuration selects by name, each with a section of its own.

`module:NAME` is code of the project, imported from its folder (`import_object`).
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias

from aifx.config.sections import DataSection, ModelSection, ObjectiveSection, Section
from aifx.core.errors import ConfigError, did_you_mean
from aifx.core.project import Project

PartName: TypeAlias = Literal["model", "objective", "data"]

Make = str | Callable[..., Any]
"""A function or class, or its place as "module:name", which is imported when it is needed."""


class Part(NamedTuple):
    """A section of `aifx.toml` whose keys depend on a name, the key that holds this name, and the section's base."""

    section: PartName
    key: str
    base: type[Section]

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}"


PARTS = (
    Part("model", "family", ModelSection),
    Part("objective", "kind", ObjectiveSection),
    Part("data", "kind", DataSection),
)
PART_NAMES = tuple(part.section for part in PARTS)


@dataclass(frozen=True)
class Kind:
    """The family, objective or kind of data that a name in `aifx.toml` selects.

    Attributes:
        section: the type of the section that holds the name.
        presets: values of this section, by the name of the preset.
    """

    name: str
    section: type[Section]
    make: Make
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskParts:
    """The parts of the configuration of a task.

    Attributes:
        kind: `task.kind`.
        task: the class that `task.kind = "module:Class"` names; otherwise None.
        names: what selects family, objective and kind of data, set or by the task, by section; empty with a class.
        kinds: family, objective and kind of data by section; empty with a class.
        sections: the type of each of these sections.
    """

    kind: str
    task: type[Any] | None
    names: Mapping[PartName, str]
    kinds: Mapping[PartName, Kind]
    sections: Mapping[PartName, type[Section]]

    def named(self, section: PartName) -> str:
        """The key that selects the model, the objective or the data, and its value: for errors."""
        if self.task is not None:
            return f"task.kind = {self.kind!r}"
        return next(f"{part.path} = {self.names[section]!r}" for part in PARTS if part.section == section)


def resolve(make: Make) -> Any:
    """The function or class behind `make`."""
    if not isinstance(make, str):
        return make
    module, _, name = make.partition(":")
    return getattr(importlib.import_module(module), name)


_from_projects: set[str] = set()  # top-level modules that were imported from a project's folder


def import_object(key: str, name: str, project: Project) -> Any:
    """Import `module:NAME`, with the project's folder first. Raises ConfigError, which names `key`."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not attribute.isidentifier():
        why = "code of the project is named `module:NAME`"
        raise ConfigError(f"{key} = {name!r} cannot be imported", why, f'{key.partition(".")[2]} = "my_code:NAME"')
    if project.code is not None:
        sys.dont_write_bytecode = True  # a model version has the files of its manifest only
    try:
        with redirect_stdout(sys.stderr):  # what a module prints is not part of aifx's answer
            module = _import_module(module_name, key, project.code_path)
    except (KeyboardInterrupt, ConfigError):
        raise
    except BaseException as error:  # a module may raise anything while it is imported, SystemExit too
        is_missing = isinstance(error, ModuleNotFoundError)
        hint = f"create {module_name.split('.')[0]}.py in {project.code_path}, or change {key}" if is_missing else ""
        why = _why(error, module_name, project.code_path)
        raise ConfigError(f"{key} = {name!r} cannot be imported", why, hint) from error
    if not hasattr(module, attribute):
        own = [name for name, value in vars(module).items() if not name.startswith("_") and _is_own(value, module)]
        raise ConfigError(f"{key} = {name!r}: {module_name} has no {attribute!r}", did_you_mean(attribute, own))
    return getattr(module, attribute)


def _import_module(name: str, key: str, root: Path) -> Any:
    # Modules of another project, imported earlier in this process: this one may have the same names.
    for loaded, module in list(sys.modules.items()):
        if loaded.split(".")[0] in _from_projects and not _lies_in(module, root):
            del sys.modules[loaded]
    top = name.split(".")[0]
    is_ours = any((root / top).with_suffix(suffix).exists() for suffix in (".py", ""))
    if is_ours and (other := sys.modules.get(top)) is not None and not _lies_in(other, root):
        raise ConfigError(
            f"{root / top}.py has the name of another module",
            f"{top!r} is {getattr(other, '__file__', None) or 'built into Python'}",
            f"give the file another name, and change {key} with it",
        )
    before = set(sys.modules)
    sys.path[:] = [str(root), *(path for path in sys.path if path != str(root))]
    importlib.invalidate_caches()
    imported = importlib.import_module(name)
    new = {loaded: sys.modules[loaded] for loaded in set(sys.modules) - before}
    _from_projects.update(loaded.split(".")[0] for loaded, module in new.items() if _lies_in(module, root))
    return imported


def _is_own(value: Any, module: Any) -> bool:
    """Whether a value of a module is a constant, or a class or function that is defined in it."""
    if isinstance(value, type) or callable(value):
        return bool(getattr(value, "__module__", None) == module.__name__)
    return not isinstance(value, ModuleType)


def _lies_in(module: Any, root: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place and Path(place).resolve().is_relative_to(root.resolve()) for place in places)


def _why(error: BaseException, module_name: str, root: Path) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
        return f"there is no module {error.name!r} in {root}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(root)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {text}" if frames else text
