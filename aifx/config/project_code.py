"""Importing what a configuration names as `module:NAME` from the project's folder."""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from aifx.core.errors import ConfigError, did_you_mean
from aifx.core.project import Project

_from_projects: set[str] = set()  # top-level modules that were imported from a project's folder


def import_object(key: str, name: str, project: Project) -> Any:
    """Import `module:NAME`, with the project's folder first. Raises ConfigError, which names `key`."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not attribute.isidentifier():
        why = "code of the project is named `module:NAME`"
        raise ConfigError(f"{key} = {name!r} cannot be imported", why, f'{key.partition(".")[2]} = "my_code:NAME"')
    try:
        with redirect_stdout(sys.stderr):  # what a module prints is not part of aifx's answer
            module = _import_module(module_name, key, project.root)
    except (KeyboardInterrupt, ConfigError):
        raise
    except BaseException as error:  # a module may raise anything while it is imported, SystemExit too
        is_missing = isinstance(error, ModuleNotFoundError)
        hint = f"create {module_name.split('.')[0]}.py in {project.root}, or change {key}" if is_missing else ""
        why = _why(error, module_name, project.root)
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
