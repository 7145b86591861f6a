"""New projects from templates, through copier: rendered in a temporary folder, then moved into place as a whole."""

from __future__ import annotations

import filecmp
import logging
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aifx.templates
from aifx.core.errors import AifxError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.executables import find_program, with_safe_path
from aifx.core.results import Result
from aifx.core.sanitize import escape_controls
from aifx.scaffold.own_base import BASE_CONFIG, BASE_RUN, make_base_run, move_base_run
from aifx.scaffold.own_data import answers_from_data
from aifx.scaffold.template_safety import STAGING, check_rendered, name_source, template_source

logger = logging.getLogger(__name__)

QUESTIONS = "copier.yml"
DEFAULT_TEMPLATE = "language-model"
PREPARE = "data/prepare.sh"
"""The script of a project that makes its data set."""


@dataclass(frozen=True)
class BundledTemplate:
    """A template that comes with aifx. Its summary is the first line of its questions."""

    name: str
    summary: str
    questions: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class TemplateList(Result):
    """The document of `aifx init --list --json`."""

    templates: list[BundledTemplate]


@dataclass(frozen=True)
class Scaffolded(Result):
    """A project that `scaffold` made: the document of `aifx init --json`.

    Attributes:
        files: what landed, relative to the project.
        set_beside: those of them that landed as `.new`, because a file of the name was there.
        dry_run: whether nothing was written.
        next: commands that follow, from the working directory.
    """

    project: Path
    template: str
    files: tuple[str, ...]
    set_beside: tuple[str, ...]
    dry_run: bool
    next: tuple[str, ...]


def bundled_templates() -> list[BundledTemplate]:
    """The templates that come with aifx, by name."""
    root = Path(aifx.templates.__path__[0])
    found = []
    for questions in sorted(root.glob(f"*/{QUESTIONS}")):
        text = questions.read_text("utf-8")
        asked = tuple(re.findall(r"^([a-z]\w*):", text, re.MULTILINE))
        summary = text.partition("\n")[0].lstrip("# ").strip()
        found.append(BundledTemplate(questions.parent.name, summary, asked, questions.parent))
    return found


def find_template(name: str) -> BundledTemplate | str:
    """A bundled template by its name, or the path or URL of one elsewhere. Raises UsageError, EnvironmentFault."""
    bundled = {t.name: t for t in bundled_templates()}
    if name in bundled:
        return bundled[name]
    url = urlsplit(name)
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        name = url2pathname(url.path)
    path = Path(name).expanduser()
    if ":" in name or name.endswith(".git"):
        if find_program("git") is None:
            raise EnvironmentFault(f"cannot fetch the template {name}", "git is not installed", "aifx init --list")
        return name
    if path.exists():
        return str(path)
    if "/" in name or name.startswith(("~", ".")):
        raise UsageError(f"no template at {name}", "there is no such folder", "aifx init --list")
    raise UsageError(f"no template {name!r}", did_you_mean(name, bundled), "aifx init --list")


def parse_answers(pairs: Sequence[str]) -> dict[str, Any]:
    """Answers from `key=value` strings. Raises UsageError."""
    answers = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            hint = "--answer project_name=whale"
            raise UsageError(f"--answer {pair!r} is not an answer", "an answer is KEY=VALUE", hint)
        _check_name(value, f"--answer {key}")
        answers[key] = value
    return answers


def _check_name(text: str, what: str) -> None:
    """Raise UsageError for text with control characters: it becomes part of files that people read on terminals."""
    if (escaped := escape_controls(text)) != text:
        raise UsageError(f"{what} cannot be {escaped}", "it contains control characters", "aifx init my-project")


def check_destination(destination: Path, *, force: bool) -> None:
    """Raise UsageError if there is a file, or without `force` a folder that holds more than `.git`."""
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"{destination} is a file", "a project is a folder", "aifx init another-name")
    if force or not destination.exists():
        return
    if there := sorted(p.name for p in destination.iterdir() if p.name != ".git"):
        listed = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        hint = (
            "name another folder, or add --force: existing files stay, and new files of the same name become NAME.new"
        )
        raise UsageError(f"{destination} is not empty", f"it contains {listed}", hint)


def scaffold(
    destination: Path,
    template: str,
    *,
    data: Mapping[str, Any],
    ask: bool,
    force: bool = False,
    vcs_ref: str | None = None,
    dry_run: bool = False,
) -> Scaffolded:
    """Make a project.

    Args:
        template: as `find_template` takes it.
        data: answers to the template's questions.
        ask: ask the other questions on the terminal; otherwise they get their defaults.
        force: write into a folder that is not empty. Its files stay; a new file of the same name is written as `.new`.
        vcs_ref: tag, branch or commit of a template in git; the newest version's tag when None, as copier has it.
        dry_run: report what would be written, and write nothing.

    Raises UsageError for a destination, template or answer that cannot be used, EnvironmentFault where the folder
    cannot be written.
    """
    found = find_template(template)
    destination = destination.absolute()
    check_destination(destination, force=force)
    folder = destination.resolve().name
    _check_name(folder, "the folder of a project")
    if isinstance(found, BundledTemplate) and (unknown := [key for key in data if key not in found.questions]):
        why = f"the template {found.name} asks no such question: {did_you_mean(unknown[0], found.questions)}"
        raise UsageError(f"--answer {unknown[0]} answers no question", why, "aifx init --list")
    if isinstance(found, BundledTemplate):
        data = {**data, **answers_from_data(found.name, data, destination)}
    with _staging(destination, dry_run=dry_run) as staging:
        if isinstance(found, BundledTemplate):
            data = {**data, **make_base_run(found.name, data, staging)}
        rendered = staging / (folder or "project")  # a template may ask copier for the folder's name
        name = _render(found, staging, rendered, data=data, ask=ask, vcs_ref=vcs_ref)
        move_base_run(staging, rendered)
        landing = list(_landing(rendered, destination))
        if not dry_run:
            _land(landing, rendered, destination)
    files = tuple(str(target.relative_to(destination)) for _, target in landing)
    set_beside = tuple(str(new.relative_to(destination)) for source, new in landing if new.name != source.name)
    here = os.path.relpath(destination)
    steps = [] if here == "." else [f"cd {shlex.quote(here)}"]
    if BASE_CONFIG in files:
        steps.append(f"aifx train --config {BASE_CONFIG} --run {BASE_RUN}")
    if PREPARE in files:
        steps.append(f"sh {PREPARE}")
    if "aifx.toml" in files:
        steps += ["aifx train", "aifx eval"]
    return Scaffolded(destination, name, files, set_beside, dry_run, tuple(steps))


@contextmanager
def _staging(destination: Path, *, dry_run: bool) -> Iterator[Path]:
    """A folder on the destination's own file system, gone at the end, so that landing is a rename."""
    place = next(p for p in (destination, *destination.parents) if p.exists())
    if not place.is_dir():
        raise UsageError(f"{destination} lies below a file", f"{place} is a file", "aifx init another-folder")
    try:
        folder = TemporaryDirectory(prefix=STAGING, dir=None if dry_run else place, ignore_cleanup_errors=True)
    except OSError as err:
        raise EnvironmentFault(f"cannot write in {place}", str(err), "aifx init in a folder of your own") from err
    with folder as name:
        yield Path(name)


def _render(
    template: BundledTemplate | str,
    staging: Path,
    rendered: Path,
    *,
    data: Mapping[str, Any],
    ask: bool,
    vcs_ref: str | None,
) -> str:
    """Run copier into `rendered`; the template's name."""
    import copier  # 0.4 s: only once there is something to render

    copy = staging / "template"
    if isinstance(template, str):
        name, source = template, template_source(template, copy, vcs_ref)
    else:  # a plain copy: an editable install may hold links, which copier refuses to follow out of the template
        name, source = template.name, str(shutil.copytree(template.path, copy))
    settings = copier.Settings(defaults=copier.load_settings().defaults, trust=[])  # nothing is trusted to run code
    messages, is_bundled = _Messages(sys.stderr), isinstance(template, BundledTemplate)
    with _in_our_words(name), with_safe_path(), redirect_stdout(messages), redirect_stderr(messages):
        copier.run_copy(
            source, rendered, dict(data), settings=settings, defaults=not ask, vcs_ref=vcs_ref, quiet=is_bundled
        )
    check_rendered(rendered, name)
    if is_bundled:
        _make_scripts_executable(rendered)
    elif source != name:
        name_source(rendered, source, name)
    return name


class _Messages:
    """In place of stdout and stderr while copier runs: logs the lines of the template and drops copier's own.

    copier colours its list of files wherever it goes; that list is ours to print. Its questions still reach the
    terminal, since they are written to the stream's buffer.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = ""  # the beginning of a line whose end has not come

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip() and not line.startswith(("\x1b[", "Copying from template version")):
                with redirect_stderr(self._stream):
                    logger.info(line)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _make_scripts_executable(folder: Path) -> None:
    """Wheels and archives may lose the mode of a script, and a read-only install passes its own mode on."""
    for path in folder.rglob("*"):
        if path.is_file():
            is_script = path.read_bytes().startswith(b"#!")
            path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR | (0o111 if is_script else 0))


@contextmanager
def _in_our_words(template: str) -> Iterator[None]:
    """Turn errors of copier, jinja and git into AifxError."""
    from copier.errors import CopierAnswersInterrupt, CopierError, InteractiveSessionError, UnsafeTemplateError
    from jinja2 import TemplateError

    try:
        yield
    except (AifxError, CopierAnswersInterrupt):
        raise
    except UnsafeTemplateError as err:
        why = str(err).partition("\n")[0] + " aifx runs no code of a template."
        hint = f"if you trust it: copier copy --trust {template} DIR"
        raise UsageError(f"the template {template} is refused", why, hint) from err
    except InteractiveSessionError as err:
        hint = "--yes or --answer KEY=VALUE"
        raise UsageError(f"the template {template} asks questions", "there is no terminal", hint) from err
    except ValueError as err:
        if type(err).__name__ == "ForbiddenPathError":  # copier's message names the path alone
            why = f"{err}: it is a link or a path that leaves the template"
            raise UsageError(f"the template {template} is refused", why, f"ls -lR {template}") from err
        if (required := re.fullmatch(r'Question "(\w+)" is required', str(err))) is None:
            raise _unusable(template, err) from err
        why = f"its question {required[1]!r} has no default"
        raise UsageError(f"the template {template} needs an answer", why, f"--answer {required[1]}=VALUE") from err
    except Exception as err:
        # Of plumbum (git failed; an OSError) and yaml by name: neither package is a dependency of ours.
        foreign = type(err).__module__.startswith(("plumbum", "yaml"))
        if not foreign and not isinstance(err, (CopierError, TemplateError, TypeError)):
            raise
        raise _unusable(template, err) from err


def _unusable(template: str, err: Exception) -> UsageError:
    why = " ".join((getattr(err, "stderr", None) or str(err)).split())
    return UsageError(f"the template {template} cannot be used", why, "aifx init --list")


def _landing(rendered: Path, destination: Path) -> Iterator[tuple[Path, Path]]:
    """Each rendered file and where it goes: beside one that is there, unless that has the same content."""
    for entry in sorted(rendered.iterdir()):
        target = destination / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
                target = _free_name(target)
            yield from _landing(entry, target)
        elif not os.path.lexists(target):
            yield entry, target
        elif not (target.is_file() and entry.is_file() and filecmp.cmp(entry, target, shallow=False)):
            yield entry, _free_name(target)


def _free_name(path: Path) -> Path:
    """`path.new`, or `path.new2` and so on where that is taken."""
    name, count = path.with_name(f"{path.name}.new"), 2
    while os.path.lexists(name):
        name, count = path.with_name(f"{path.name}.new{count}"), count + 1
    return name


def _land(landing: Sequence[tuple[Path, Path]], rendered: Path, destination: Path) -> None:
    """Move everything into place; when that is interrupted, take back what was moved."""
    if not destination.exists():
        destination.parent.mkdir(parents=True, exist_ok=True)
        rendered.rename(destination)
        return
    with ExitStack() as undo:
        for source, target in landing:
            for folder in reversed([p for p in target.parents if p.is_relative_to(destination) and not p.exists()]):
                undo.callback(_remove_empty, folder)
                folder.mkdir()
            undo.callback(target.unlink, missing_ok=True)
            source.rename(target)
        undo.pop_all()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
