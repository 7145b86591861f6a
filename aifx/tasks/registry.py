"""From `task.kind` to a task: bundled ones by name, a project's own as `module:Class` from the project's folder."""

from __future__ import annotations

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from aifx.config import Config, import_task
from aifx.core.errors import AifxError, ConfigError
from aifx.core.os_errors import errno_of
from aifx.core.project import CONFIG_NAME, Project
from aifx.tasks.base import Task
from aifx.tasks.results import CHECKS, WrongResult

BUNDLED = {"language": "aifx.tasks.language:LanguageTask", "vision": "aifx.tasks.vision:VisionTask"}

REQUIRED = ("create", "source", "objective", "metrics", "units", "batch_shape", "data_digest")
"""What a task must bring: `Task` itself declares these and implements none."""


OPTIONAL = ("evaluation_source", "with_data", "with_split", "read_rows", "predictions", "decode")
"""What a task may bring. `encode` is not among them: what it raises is about a row."""


def create_task(config: Config, project: Project, assets: Path) -> Task:
    """The task of a project, its data opened. Raises ConfigError, DataError."""
    return _open_task("create", config, project, assets)


def load_task(config: Config, project: Project, assets: Path) -> Task:
    """The task of a trained run, without the data that it was trained on where the task can do without.

    Raises ConfigError, DataError.
    """
    return _open_task("load", config, project, assets)


def _open_task(method: Literal["create", "load"], config: Config, project: Project, assets: Path) -> Task:
    kind = config.task.kind
    cls = task_class(kind, project)
    if kind in BUNDLED:
        return getattr(cls, method)(config, project, assets)  # type: ignore[no-any-return]
    with _their_mistakes(f"{cls.__name__}.{method}", kind, project):
        guarded = _guarded(cls, kind, project)
        task: Task = getattr(guarded, method, guarded.create)(config, project, assets)
    lacking = [name for name in ("model", "unit") if not hasattr(task, name)]
    if not lacking:
        lacking = [f"model.{name}" for name in ("specs", "flops") if not callable(getattr(task.model, name, None))]
    if lacking:
        raise _not_whole(kind, lacking)
    return task


def task_class(kind: str, project: Project) -> type[Task]:
    """The class behind `task.kind`. Raises ConfigError naming what is wrong with it."""
    if (path := BUNDLED.get(kind)) is not None:
        module, name = path.split(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    cls = import_task(kind, project)
    if not inspect.isclass(cls):
        raise ConfigError(f"{CONFIG_NAME}: task.kind = {kind!r} is not a class", f"it is {cls!r}", "docs/tasks.md")
    if lacking := [name for name in REQUIRED if not _brings(cls, name)]:
        raise _not_whole(kind, lacking)
    return cast(type[Task], cls)


def _brings(cls: type, name: str) -> bool:
    own = inspect.getattr_static(cls, name, None)
    return own is not None and own is not inspect.getattr_static(Task, name)


def _not_whole(kind: str, lacking: list[str]) -> ConfigError:
    return ConfigError(
        f"{CONFIG_NAME}: task.kind = {kind!r} is not a whole task",
        f"it lacks {', '.join(lacking)}",
        "derive it from aifx.tasks.Task; docs/tasks.md shows one",
    )


def _guarded(cls: type[Task], kind: str, project: Project) -> type[Task]:
    """The class, which reports what its methods raise as the task's mistake rather than as a bug of ours."""

    def guard(name: str) -> Callable[..., Any]:
        method = getattr(cls, name, None) or getattr(Task, name)

        @functools.wraps(method)
        def call(self: Task, *args: Any, **kwargs: Any) -> Any:
            with _their_mistakes(f"{cls.__name__}.{name}", kind, project, method):
                result = method(self, *args, **kwargs)
                return CHECKS[name](result) if name in CHECKS else result

        @functools.wraps(method)
        def generate(self: Task, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with _their_mistakes(f"{cls.__name__}.{name}", kind, project):
                yield from method(self, *args, **kwargs)

        return generate if inspect.isgeneratorfunction(method) else call

    methods: dict[str, Any] = {name: guard(name) for name in (*REQUIRED, *OPTIONAL) if name != "create"}
    methods["encode"] = getattr(cls, "encode", Task.encode)
    return type(cls.__name__, (cls,), methods)


@contextmanager
def _their_mistakes(what: str, kind: str, project: Project, method: Any = None) -> Iterator[None]:
    try:
        yield
    except (AifxError, MemoryError):
        raise
    except (Exception, SystemExit) as err:
        if isinstance(err, OSError) and errno_of(err) is not None:  # the machine refuses, and the task is not to blame
            raise
        if isinstance(err, WrongResult):
            message, place = str(err), _definition(method, project)
        else:
            message, place = " ".join(f"{type(err).__name__}: {err}".split()), _place(err, project)
        raise ConfigError(
            f"{CONFIG_NAME}: task.kind = {kind!r}: {what} failed",
            f"{message[:300]}{place}",
            "fix the task; --debug shows the whole traceback",
        ) from err


def _definition(method: Any, project: Project) -> str:
    """The place of a method in the project's files, " (my_task.py:12)"."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is None or not Path(code.co_filename).is_relative_to(project.root):
        return ""
    return f" ({Path(code.co_filename).relative_to(project.root)}:{code.co_firstlineno})"


def _place(err: BaseException, project: Project) -> str:
    """Where in the project's own files an exception was last, " (my_task.py:12)"."""
    own = [f for f in traceback.extract_tb(err.__traceback__) if Path(f.filename).is_relative_to(project.root)]
    return f" ({Path(own[-1].filename).relative_to(project.root)}:{own[-1].lineno})" if own else ""
