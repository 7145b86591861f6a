"""Errors of a project's own code, reported as its mistakes rather than as bugs of aifx."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aifx.config.parts import PARTS, TaskParts
from aifx.core.errors import AifxError, ConfigError
from aifx.core.os_errors import errno_of
from aifx.core.project import CONFIG_NAME, Project


@contextmanager
def project_errors(parts: TaskParts | str, project: Project, what: str = "") -> Iterator[None]:
    """In this block, an exception that left code in the project's folder becomes a ConfigError with its place.

    Args:
        parts: of the task; or the key that names the code, with its value.
        what: failed, if the whole block is the project's code; by default the innermost of its functions.
    """
    try:
        yield
    except (AifxError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and errno_of(error) is not None:  # the machine refuses; the code is not to blame
            raise
        frame = _own_frame(error, project)
        name = what or (frame.name if frame else "")
        if not name:
            raise
        place = f" ({Path(frame.filename).relative_to(project.code_path)}:{frame.lineno})" if frame else ""
        message = " ".join(f"{type(error).__name__}: {error}".split())
        failed = f"{CONFIG_NAME}: {_named(parts, frame, project)}: {name} failed"
        raise ConfigError(failed, f"{message[:300]}{place}", "fix it; --debug shows the whole traceback") from error


def _own_frame(error: BaseException, project: Project) -> traceback.FrameSummary | None:
    """The innermost call in the project's own files, installed packages left out, that the exception went through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(project.code_path) and not {"site-packages", "dist-packages"} & set(path.parts):
            return frame
    return None


def _named(parts: TaskParts | str, frame: traceback.FrameSummary | None, project: Project) -> str:
    """The keys that name the project's own code: those of the module that failed, or all."""
    if isinstance(parts, str):
        return parts
    keys = {"task.kind": parts.kind}
    keys |= {part.path: parts.names.get(part.section, "") for part in PARTS}
    own = {key: value for key, value in keys.items() if ":" in value}
    if frame is not None:
        top = Path(frame.filename).relative_to(project.code_path).parts[0].removesuffix(".py")
        own = {key: value for key, value in own.items() if value.partition(":")[0].split(".")[0] == top} or own
    return ", ".join(f"{key} = {value!r}" for key, value in own.items())
