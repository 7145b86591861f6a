"""From `task.kind` to a task: bundled ones by name, a project's own as `module:Class` from the project's folder."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from aifx.config import Config
from aifx.config.sections import Section
from aifx.errors import AifxError, ConfigError, did_you_mean
from aifx.project import CONFIG_NAME, Project
from aifx.tasks.base import Say, Task

BUNDLED = {"language": "aifx.tasks.language:LanguageTask", "vision": "aifx.tasks.vision:VisionTask"}

REQUIRED = ("create", "source", "objective", "metrics", "units", "batch_shape", "data_digest")


def create_task(config: Config, project: Project, assets: Path, *, say: Say) -> Task:
    """The task of a project, its data opened. Raises ConfigError, DataError."""
    kind = config.task.kind
    cls = task_class(kind, project)
    if kind in BUNDLED:
        return cls.create(config, project, assets, say=say)
    try:
        return cls.create(config, project, assets, say=say)
    except AifxError:
        raise
    except Exception as err:
        raise _broken(kind, f"{kind}.create failed", err, project) from err


def task_class(kind: str, project: Project) -> type[Task]:
    """The class behind `task.kind`. Raises ConfigError naming what is wrong with it."""
    if (path := BUNDLED.get(kind)) is not None:
        module_name, class_name = path.split(":")
        return getattr(importlib.import_module(module_name), class_name)  # type: ignore[no-any-return]
    module_name, colon, class_name = kind.partition(":")
    if not colon or not class_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        why = did_you_mean(kind, BUNDLED) + " A task of the project's own is written module:Class."
        raise ConfigError(f"{CONFIG_NAME}: task.kind = {kind!r} is no task", why, "aifx config show task")
    module = _import_from(project, module_name, kind)
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls):
        classes = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
        raise ConfigError(
            f"{CONFIG_NAME}: task.kind = {kind!r}: no class {class_name!r} in {module.__file__}",
            did_you_mean(class_name, classes) or "the module defines no class",
            f"class {class_name}(aifx.tasks.Task): ...",
        )
    _check_complete(cls, kind)
    return cls


def _import_from(project: Project, name: str, kind: str) -> ModuleType:
    """Import a module of the project's own folder, which goes first on `sys.path` and stays there for what it imports later."""
    root = str(project.root)
    if sys.path[:1] != [root]:
        sys.path[:] = [root, *(p for p in sys.path if p != root)]
    importlib.invalidate_caches()
    _forget_namesake(name.partition(".")[0], project.root)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is None or not (name == err.name or name.startswith(f"{err.name}.")):
            raise _broken(kind, f"{name} cannot be imported", err, project) from err
        there = [p.stem for p in project.root.glob("*.py")]
        why = f"no {name.replace('.', '/')}.py in {project.root}. {did_you_mean(name, there)}".strip()
        raise ConfigError(f"{CONFIG_NAME}: task.kind = {kind!r}: no module {name!r}", why, "aifx config show task") from err
    except (Exception, SystemExit) as err:
        raise _broken(kind, f"{name} cannot be imported", err, project) from err


def _forget_namesake(package: str, root: Path) -> None:
    """Drop a module of this name that came from another project, so that each project gets its own."""
    loaded = sys.modules.get(package)
    own = (root / package).is_dir() or (root / f"{package}.py").is_file()
    if loaded is None or not own:
        return
    places = [loaded.__file__] if getattr(loaded, "__file__", None) else list(getattr(loaded, "__path__", []))
    if not any(Path(p).resolve().is_relative_to(root.resolve()) for p in places if p):
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


def _check_complete(cls: type, kind: str) -> None:
    missing = [name for name in REQUIRED if getattr(cls, name, None) is None or getattr(cls, name) == getattr(Task, name)]
    if inspect.ismethod(own := getattr(cls, "create", None)) and own.__func__ is Task.create.__func__:  # type: ignore[attr-defined]
        missing.insert(0, "create")
    missing += [
        name
        for name in ("model_section", "data_section")
        if not (inspect.isclass(section := getattr(cls, name, None)) and issubclass(section, Section))
    ]
    if missing:
        raise ConfigError(
            f"{CONFIG_NAME}: task.kind = {kind!r} is not a whole task",
            f"it lacks {', '.join(missing)}",
            "docs/tasks.md shows what a task has",
        )


def _broken(kind: str, what: str, err: BaseException, project: Project) -> ConfigError:
    """The user's exception in one line, with the last place in the project's own files that it passed."""
    where = ""
    for frame in traceback.extract_tb(err.__traceback__):
        if Path(frame.filename).is_relative_to(project.root):
            where = f" ({Path(frame.filename).relative_to(project.root)}, line {frame.lineno})"
    if isinstance(err, SyntaxError) and err.filename:
        where = f" ({Path(err.filename).name}, line {err.lineno})"
    message = err.msg if isinstance(err, SyntaxError) else str(err)
    module = kind.partition(":")[0]
    return ConfigError(
        f"{CONFIG_NAME}: task.kind = {kind!r}: {what}",
        f"{type(err).__name__}: {message}{where}",
        f"python -c 'import {module}' in {project.root} shows where",
    )
