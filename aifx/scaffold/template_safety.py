"""Templates of strangers: what aifx gives copier of them, and what they may place in a project."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from aifx.core.errors import UsageError
from aifx.core.files import open_file

STAGING = ".aifx-init-"
"""Beginning of the name of the folder in which a template is rendered."""


def template_source(template: str, copy: Path, vcs_ref: str | None) -> str:
    """Return what copier is given: never a folder with a git repository, whose configuration names programs to run.

    A local folder is copied without its repository. A commit of it, or a bare repository, is cloned by URL: git then
    reads the objects and runs nothing.
    """
    folder = Path(template.removeprefix("git+")).expanduser()
    if not folder.is_dir():
        return template
    if vcs_ref is not None or template.startswith("git+") or _is_bare_repository(os.listdir(folder)):
        return f"git+{folder.resolve().as_uri()}"
    try:
        shutil.copytree(folder, copy, symlinks=True, ignore=_not_copied, copy_function=_copy_regular)
    except shutil.Error as err:
        path, _, why = err.args[0][0]
        raise UsageError(f"the template {template} cannot be read", f"{path}: {why}", f"ls -l {path}") from err
    return str(copy)


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """The names that are not copied of a template: repositories, and the copy itself if it lies in its folder."""
    return [name for name in names if _is_git_name(name) or name.startswith(STAGING)]


def _copy_regular(source: str, target: str) -> None:
    with open(open_file(Path(source)), "rb") as read, open(target, "xb") as write:
        shutil.copyfileobj(read, write)
    shutil.copymode(source, target)


def _is_git_name(name: str) -> bool:
    """Whether a file system of any kind may take `name` for ".git"."""
    return name.rstrip(". ").casefold() in (".git", "git~1")


def _is_bare_repository(names: Iterable[str]) -> bool:
    return {"HEAD", "objects", "refs"} <= set(names)


def check_rendered(rendered: Path, template: str) -> None:
    """Raise UsageError if a template made a git repository, or a link that leaves the project."""
    if not rendered.is_dir():
        raise UsageError(f"the template {template} cannot be used", "no file comes of it", "aifx init --list")
    root = rendered.resolve()
    for folder, folders, files in os.walk(rendered):
        place = Path(folder).relative_to(rendered)
        if _is_bare_repository([*folders, *files]):
            raise _refused(template, f"{place} would be a git repository, whose configuration can run programs.")
        for name in (*folders, *files):
            path = Path(folder, name)
            if _is_git_name(name):
                raise _refused(template, f"It contains {place / name}, and git runs programs that such files name.")
            if path.is_symlink():
                target = os.readlink(path)
                is_inside = not os.path.isabs(target) and not os.path.normpath(place / target).startswith("..")
                if not is_inside or not path.resolve().is_relative_to(root):
                    raise _refused(template, f"Its link {place / name} -> {target} leaves the project.")


def _refused(template: str, why: str) -> UsageError:
    return UsageError(f"the template {template} is refused", why, "aifx init --list")


def name_source(rendered: Path, source: str, template: str) -> None:
    """Let copier's answers file name the template itself, not the copy that was rendered."""
    for path in rendered.glob(".copier-answers*"):
        if path.is_file() and not path.is_symlink():
            text = path.read_text("utf-8")
            path.write_text(text.replace(source, str(Path(template).expanduser().resolve())), "utf-8")
