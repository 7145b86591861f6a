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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aifx.templates
from aifx.core.environment import find_program, with_safe_path
from aifx.core.errors import AifxError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.files import open_file
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.core.sanitize import escape_controls
from aifx.core.stores import open_store

logger = logging.getLogger(__name__)

QUESTIONS = "copier.yml"
DEFAULT_TEMPLATE = "language-model"
ABOUT_DATA = {"target", "time", "series", "horizon", "minutes"}
"""Answers about the file or folder that the answer `data` names."""

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
        data = {**data, **_answers_from_data(found.name, data, destination)}
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


def _answers_from_data(template: str, answers: Mapping[str, Any], destination: Path) -> dict[str, Any]:
    """Answers that follow from data of the user's own; empty if no answer names any. Raises UsageError, DataError."""
    if not answers.get("data"):
        for key in sorted(ABOUT_DATA & answers.keys()):
            raise UsageError(f"--answer {key} requires --answer data", "it is about that data", "--answer data=FILE")
        return {}
    from aifx.scaffold.own_data import answers_from_data  # it imports NumPy and the formats of data

    return answers_from_data(template, answers, destination)


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


# The model that a project of the template fine-tune begins with: `aifx init --answer base=...`

BASE_TEMPLATE, BASE_QUESTION, BASE_RUN = "fine-tune", "base", "base"
"""The template, its question, and the name of the run that its projects begin with."""

BASE_CONFIG = f"{BASE_RUN}.toml"
"""The configuration of that run in projects that get no model."""

SEQ_LEN = 512
"""Tokens of a sequence, unless the base has fewer: conversations of the template are shorter."""

LEARNING_RATES = ((20e6, 1e-3), (200e6, 5e-4), (float("inf"), 2e-4))
"""Peak learning rates of adapters by the number of parameters up to which they fit."""

FINETUNE_STEPS = 100


def make_base_run(template: str, answers: Mapping[str, Any], staging: Path) -> dict[str, Any]:
    """Make a run of the model that the answers name, in `staging`. Returns the template's variables; {} without a base.

    Raises UsageError for a run that does not write text, and the errors of `aifx.hub.importing.import_model`.
    """
    source = answers.get(BASE_QUESTION)
    if template != BASE_TEMPLATE or not source:
        return {}
    from aifx.hub.importing import import_model

    project, given = Project(staging / BASE_RUN), Path(source).expanduser()
    run = project.run(BASE_RUN)
    if (runs := list(Project(given).runs_path.glob("*/config.toml"))) and (given / "aifx.toml").is_file():
        hint = f"--answer {BASE_QUESTION}={sorted(runs)[0].parent}"
        raise UsageError(f"--answer {BASE_QUESTION}={source} is a project", "the base is one of its runs", hint)
    if RunDirectory(given).exists():
        run.path.parent.mkdir(parents=True)
        _copy_run(RunDirectory(given.resolve()), run)
    else:
        project.root.mkdir()
        import_model(source, project, BASE_RUN)
    return _base_answers(source, run, project)


def move_base_run(staging: Path, rendered: Path) -> None:
    """Put the run that `make_base_run` made, if it made one, among the files of the project."""
    if (runs := Project(staging / BASE_RUN).runs_path).is_dir():
        runs.rename(rendered / "runs")


def _copy_run(origin: RunDirectory, run: RunDirectory) -> None:
    """Copy the files of a run that generation and fine-tuning need, with its best checkpoint alone.

    Raises Damaged if a byte of the checkpoint has changed since it was saved.
    """
    from aifx.checkpoint.copying import copy_checkpoint, open_stored
    from aifx.kinds import read_config
    from aifx.loading.steps import choose_step

    config = read_config(origin.config, Project(origin.path.parent.parent), environ={})
    step = choose_step(origin, config, "best")
    run.path.mkdir()
    for path in (origin.config, origin.digests, origin.provenance, origin.imported, origin.kernels):
        if path.exists():
            shutil.copyfile(path, run.path / path.name)
    shutil.copytree(origin.assets, run.assets)
    copy_checkpoint(open_stored(str(origin.checkpoints / str(step))), open_store(str(run.checkpoints)))


def _base_answers(source: str, run: RunDirectory, project: Project) -> dict[str, Any]:
    from aifx.checkpoint.manifest import list_checkpoints, read_manifest
    from aifx.config.toml import to_toml
    from aifx.data.sections import OWN_TOKENIZERS, TokenSection
    from aifx.data.spec import need_spec
    from aifx.data.text import TOKENIZER_FILE
    from aifx.hub.starting import changed_values
    from aifx.kinds import read_config
    from aifx.models.decoder.section import DecoderSection

    config = read_config(run.config, project, environ={})
    data = config.data
    if not isinstance(data, TokenSection):
        why = f"its data is {config.parts.kinds['data'].name if config.parts.kinds else 'its own'}, not text"
        raise UsageError(f"--answer {BASE_QUESTION}={source} cannot be fine-tuned to answer", why, "--answer base=RUN")
    (checkpoint,) = list_checkpoints(run.checkpoints)
    parameters = read_manifest(run.checkpoints / str(checkpoint.step)).num_parameters
    is_own = data.tokenizer in OWN_TOKENIZERS
    values = {
        "tokenizer": f"runs/{BASE_RUN}/assets/{TOKENIZER_FILE}",
        "vocab_size": need_spec(run.assets).vocab_size,
        "end_tokens": None if is_own or not data.end_tokens else list(data.end_tokens),
        "begin_token": data.begin_token,
    }
    section = config.model
    has_table = isinstance(section, DecoderSection) and section.positions == "learned" and section.max_seq_len is None
    return {
        "base_source": str(source),
        "model_toml": _section_lines(to_toml({"model": changed_values(config.model)}, None)),
        "data_toml": _section_lines(to_toml({"data": {k: v for k, v in values.items() if v is not None}}, None)),
        "seq_len": data.seq_len if has_table else min(SEQ_LEN, data.seq_len),
        "learning_rate": next(rate for most, rate in LEARNING_RATES if parameters <= most),
        "num_steps": FINETUNE_STEPS,
    }


def _section_lines(toml: str) -> str:
    """The keys of a section, without its header."""
    return toml.strip().partition("\n")[2]


# Templates of strangers: what aifx gives copier of them, and what they may place in a project


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
