"""Paths on disk: the project's root, its runs, and the caches."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aifx.core.errors import AifxError, UsageError, did_you_mean, nearest
from aifx.core.files import check_folder, check_private, open_file, user_name

CONFIG_NAME = "aifx.toml"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_run_name(name: str) -> None:
    """Raise UsageError for what is not a plain folder name."""
    if not RUN_NAME.fullmatch(name):
        why = "a run's name is letters, digits, '.', '_' and '-', 100 at most, and begins with a letter or digit"
        raise UsageError(f"{name!r} cannot name a run", why, "aifx train --run my-run")


class UntrustedProject(AifxError):
    """The project around the working directory belongs to another user, and `AIFX_TRUST` does not name it."""


class _Entry:
    """The path of a file or folder in a run's directory."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunDirectory, owner: object) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run; docs/run-directory.md is their documentation. Nothing here needs to exist."""

    path: Path

    config = _Entry("config.toml")
    provenance = _Entry("provenance.json")
    events = _Entry("events.jsonl")
    metrics = _Entry("metrics.jsonl")
    log = _Entry("train.log")
    lock = _Entry("lock")
    checkpoints = _Entry("checkpoints")
    eval = _Entry("eval")
    assets = _Entry("assets")  # what the model needs beside its arrays, such as a tokenizer
    kernels = _Entry("kernels.json")
    digests = _Entry("digests.json")
    trackers = _Entry("trackers")
    profile = _Entry("profile")
    plan = _Entry("plan.json")  # what `aifx plan --run` predicted
    reference = _Entry("assets/reference.npz")  # log-probabilities of pairs of answers before training
    tags = _Entry("tags.json")
    requests = _Entry("requests")  # ids that its training was asked for with
    records = _Entry("records")  # of its servers
    imported = _Entry("import.json")  # where an imported model came from

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def model_digest(self) -> str | None:
        """The digest, if it is a version of a model."""
        return None

    @property
    def title(self) -> str:
        """What messages and reports call it."""
        return f"run {self.name}"

    @property
    def option(self) -> str:
        """The option by which commands take it."""
        return f"--run {self.name}"

    def exists(self) -> bool:
        return self.config.is_file()

    def sibling(self, name: str) -> RunDirectory:
        """The run called `name` beside this one. Raises UsageError for what is not a plain folder name."""
        check_run_name(name)
        return RunDirectory(self.path.parent / name)

    def check_entries(self) -> None:
        """Raise UnsafeFile if what aifx writes in the run is a link, a FIFO or a device: the run may be a copy."""
        folders = self.checkpoints, self.eval, self.assets, self.trackers, self.profile, self.requests, self.records
        for folder in folders:
            check_folder(folder)
        for file in (self.lock, self.config, self.provenance, self.events, self.metrics, self.log, self.kernels):
            if os.path.lexists(file):
                os.close(open_file(file))


@dataclass(frozen=True)
class Project:
    """A folder that holds an `aifx.toml`.

    Attributes:
        code: the folder of its own modules; `root` if not set. That of a model version has its own.
        datasets: where its data sets are: a folder relative to `root`, or a URL. `Config.apply_to` sets all but `root`.
        registry: where its models are, likewise.
        trusted_keys: PEM files of public keys, relative to `root`: code that one of them signed may run.
        license_allow: SPDX identifiers of the licences that its data may have; any if empty.
        license_conflicts: what to do about sources whose licences exclude each other.
    """

    root: Path
    datasets: str = "datasets"
    registry: str = "registry"
    trusted_keys: tuple[str, ...] = ()
    license_allow: tuple[str, ...] = ()
    license_conflicts: Literal["warn", "refuse"] = "warn"
    code: Path | None = None

    @property
    def code_path(self) -> Path:
        return self.code or self.root

    @property
    def config_path(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def runs_path(self) -> Path:
        return self.root / "runs"

    def runs(self) -> list[RunDirectory]:
        """Runs that have a configuration, the most recently written last."""
        found = [RunDirectory(p) for p in self.runs_path.iterdir() if p.is_dir()] if self.runs_path.is_dir() else []
        named = (r for r in found if not r.name.startswith("."))  # a removal that was interrupted leaves .removed-...
        return sorted((r for r in named if r.exists()), key=_last_written)

    def run(self, name: str) -> RunDirectory:
        """The run called `name`, whether it exists or not. Raises UsageError for what is not a plain folder name."""
        check_run_name(name)
        return RunDirectory(self.runs_path / name)

    def existing_run(self, name: str | None = None) -> RunDirectory:
        """The run called `name`, or the most recently written one. Raises UsageError if there is none."""
        runs = self.runs()
        if name is None:
            if not runs:
                raise UsageError(f"no runs in {self.runs_path}", "nothing was trained here yet", "aifx train")
            return runs[-1]
        run = self.run(name)
        if not run.exists():
            if not runs:
                raise UsageError(f"no run {name!r} in {self.runs_path}", "nothing was trained here yet", "aifx train")
            near = did_you_mean(name, (r.name for r in runs))
            raise UsageError(f"no run {name!r} in {self.runs_path}", near, "aifx runs ls")
        return run

    def base_run(self, name: str) -> RunDirectory:
        """The run called `name`, which others begin with. Raises UsageError that says how to make it.

        By convention, NAME.toml beside `aifx.toml` is its configuration.
        """
        run, config = self.run(name), f"{name}.toml"
        if run.exists():
            return run
        names = [r.name for r in self.runs()]
        near, meant = did_you_mean(name, names), nearest(name, names)
        hint = f'base = "{meant}"    (below [finetune])' if meant else f"aifx import SOURCE --name {name}"
        if (self.root / config).is_file():
            hint = f"aifx train --config {config} --run {name}"
        raise UsageError(f"no run {name!r} in {self.runs_path}", near or "there is no run yet", hint)


def find_project(start: Path | None = None) -> Project:
    """The project that `start` (the working directory) lies in.

    Raises UsageError outside of one, UntrustedProject for one in a parent folder that belongs to another user.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / CONFIG_NAME).is_file():
            _check_owner(folder, is_here=folder == here)
            return Project(folder)
    what = f"no {CONFIG_NAME} in {here} or above it"
    raise UsageError(what, "this command works inside a project", "aifx init my-project")


def open_run(folder: str | os.PathLike[str]) -> tuple[RunDirectory, Project]:
    """The run in `folder`, with its project, which need not exist. Raises UsageError for a folder that is no run."""
    run = RunDirectory(Path(folder).absolute())
    if not run.exists():
        raise UsageError(f"no run at {folder}", "it has no config.toml", "aifx runs ls")
    parent = run.path.parent
    return run, Project(parent.parent if parent.name == "runs" else parent)


def _check_owner(folder: Path, *, is_here: bool) -> None:
    """Raise UntrustedProject if somebody may have put `aifx.toml` in the way of commands that run below it.

    root is trusted. In the working directory itself, the folder's owner is trusted too: the user went there.
    """
    path = folder / CONFIG_NAME
    owner = path.lstat().st_uid
    if owner in (os.geteuid(), 0) or (is_here and owner == folder.stat().st_uid):
        return
    trusted = os.environ.get("AIFX_TRUST", "").split(os.pathsep)
    if any(entry and Path(entry).resolve() in (folder, path) for entry in trusted):
        return
    why = f"its owner is {user_name(owner)}, and a project can run code"
    hint = f"export AIFX_TRUST={shlex.quote(str(folder))}"
    raise UntrustedProject(f"{path} belongs to another user", why, hint)


def cache_path(*folders: str) -> Path:
    """The folder of caches (compiled programs, token stores), or a folder in it: safe to delete at any time.

    Raises EnvironmentFault if another user can write there: what aifx finds there it runs.
    """
    path = cache_location()
    check_private(path)
    for name in folders:
        path /= name
        check_private(path)
    return path


def cache_location() -> Path:
    """The folder of caches, whether aifx may use it or not: `AIFX_CACHE_DIR`, or that of XDG."""
    return _location("CACHE", ".cache")


def state_path() -> Path:
    """The folder of what was measured on this machine and would have to be measured again: not safe to delete.

    `AIFX_STATE_DIR`, or what XDG has.
    """
    return _location("STATE", ".local/state")


def _location(kind: str, default: str) -> Path:
    """AIFX_<kind>_DIR; otherwise `aifx` in XDG_<kind>_HOME (XDG Base Directory Specification 0.8) or in ~/`default`."""
    if own := os.environ.get(f"AIFX_{kind}_DIR"):
        return Path(own)
    return Path(os.environ.get(f"XDG_{kind}_HOME") or Path.home() / default) / "aifx"


def _last_written(run: RunDirectory) -> float:
    return max((p.stat().st_mtime for p in (run.config, run.metrics, run.events) if p.exists()), default=0.0)
