"""Where a run came from: versions, code, data, hardware, flags; and which of them a bit-exact resumption needs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aifx.core.environment import find_program
from aifx.core.errors import CheckpointError
from aifx.core.files import read_file
from aifx.core.parsing import parse_json
from aifx.core.processes import run
from aifx.core.project import Project, RunDirectory
from aifx.core.redaction import is_secret_variable, redact, redact_arguments
from aifx.machine.host import Device, hardware, versions

NUMERIC_PACKAGES = ("python", "aifx", "jax", "jaxlib", "numpy", "optax", "grain")
"""Versions that can change a number of the run. The others only move bytes."""

OUR_OWN = (":(exclude)runs", ":(exclude)datasets", ":(exclude,glob)bench/*/*.json", ":(exclude,glob).bench-*/**")
"""Files that training, `aifx data` and `aifx bench` write into a project. Untracked ones do not make the code dirty."""

_FLAGS = re.compile(
    r"XLA_\w+|JAX_\w+|LIBTPU_INIT_ARGS|NPROC|OMP_NUM_THREADS|NVIDIA_TF32_OVERRIDE|CUDA_VISIBLE_DEVICES|NCCL_\w+"
)
_NO_EFFECT_ON_BITS = re.compile(
    r"JAX_(COMPILATION_CACHE|PERSISTENT_CACHE|LOG|DEBUG_LOG|TRACEBACK|PLATFORMS)\w*|CUDA_VISIBLE_DEVICES|XLA_PYTHON_CLIENT_\w+"
)


@dataclass(frozen=True)
class ProvenanceDifference:
    """One thing that a bit-exact resumption needs and that has changed."""

    name: str  # "jax", "cores", "XLA_FLAGS"
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {_formatted(self.old)} -> {_formatted(self.new)}"


def provenance(
    root: Path,
    *,
    data_digest: str,
    devices: Sequence[Device],
    dataset: Mapping[str, Any] | None = None,
    sources: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of `provenance.json`.

    Args:
        root: the project's folder.
        data_digest: of the task's data.
        devices: that the run trains on.
        dataset: the version of a data set that it trains on (see `dataset_record`).
        sources: the files that it trains on, by the key that names them (see `ImplicitVersion.record`).
    """
    return {
        "schema_version": 1,
        "time": time.time(),
        "versions": versions(),
        "git": git_state(root),
        "data_digest": data_digest,
        "dataset": dataset,
        "sources": sources or {},
        "hardware": hardware(devices),
        "command": redact_arguments(sys.argv),
        "environment": flags(os.environ),
    }


def read_provenance(run: RunDirectory) -> dict[str, Any]:
    """The document that `provenance` wrote into the run; empty if it cannot be read."""
    try:
        document = parse_json(read_file(run.provenance))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[ProvenanceDifference]:
    """Changes since a run began that may make a resumed run differ from an uninterrupted one.

    That is: versions, data, devices, the flags of XLA and JAX, and on the CPU its model and the cores used.
    """
    pairs = [(name, *_both(old, new, "versions", name)) for name in NUMERIC_PACKAGES]
    pairs.append(("data_digest", old.get("data_digest"), new.get("data_digest")))
    hardware_keys = ["device_kind", "num_devices", "num_processes"]
    if "cpu" in _both(old, new, "hardware", "platform"):
        hardware_keys += ["cpu", "cores"]
    pairs += [(key, *_both(old, new, "hardware", key)) for key in hardware_keys]
    names = {*old.get("environment", {}), *new.get("environment", {})}
    pairs += [
        (name, *_both(old, new, "environment", name))
        for name in sorted(names)
        if not _NO_EFFECT_ON_BITS.fullmatch(name)
    ]
    return [ProvenanceDifference(name, a, b) for name, a, b in pairs if a != b]


def flags_of_numbers(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of `flags` that can change a number of the run."""
    return {name: value for name, value in flags(environ).items() if not _NO_EFFECT_ON_BITS.fullmatch(name)}


def flags(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that steer XLA and JAX; never one that could be a secret."""
    return {k: redact(v) for k, v in sorted(environ.items()) if _FLAGS.fullmatch(k) and not is_secret_variable(k)}


def git_state(root: Path, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """The commit of the project's folder and whether its files differ from it; None if git cannot find out.

    git runs no program that the repository's configuration names: a project that was unpacked or copied brings its
    `.git/config` along. Files that such a program would convert (`filter.*`) are compared as they are.
    """
    if not any(os.path.lexists(folder / ".git") for folder in (root, *root.parents)):
        return None
    environ = _git_environment(_NO_PROGRAMS)
    commit = _git(root, timeout_s, environ, "rev-parse", "HEAD")
    if commit is None:
        return None
    branch = _git(root, timeout_s, environ, "symbolic-ref", "--short", "-q", "HEAD")
    is_dirty = _is_dirty(root, timeout_s)
    return {"commit": commit.strip(), "branch": (branch or "").strip() or None, "dirty": is_dirty}


_NO_PROGRAMS = {
    "safe.bareRepository": "explicit",  # a folder of the project may look like a repository of its own
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "status.submoduleSummary": "false",
}
"""Settings under which git runs nothing that a repository asks for, except its filters, which have names."""


def _is_dirty(root: Path, timeout_s: float) -> bool | None:
    if _git_version(timeout_s) < (2, 38):  # older ones do not know GIT_CONFIG_COUNT or safe.bareRepository
        return None
    names = _git(root, timeout_s, _git_environment(_NO_PROGRAMS), "config", "--null", "--name-only", "--list")
    if names is None:
        return None
    filters = {key.rpartition(".")[0] for key in names.split("\0") if key.startswith("filter.")}
    off = {f"{name}.{key}": "" for name in filters for key in ("clean", "smudge", "process")}
    required = {f"{name}.required": "false" for name in filters}
    environ = _git_environment({**_NO_PROGRAMS, **off, **required})
    arguments = ("status", "--porcelain", "--ignore-submodules=dirty", "--", ".", *OUR_OWN)
    changed = _git(root, timeout_s, environ, *arguments)
    return None if changed is None else bool(changed.strip())


@cache
def _git_version(timeout_s: float) -> tuple[int, ...]:
    version = _git(Path("/"), timeout_s, _git_environment({}), "version") or ""
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _git_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The process's environment, with settings that win over the repository's, and without fetching missing objects."""
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isdecimal() else 0  # behind what the user set that way: the last one wins
    given = {f"GIT_CONFIG_KEY_{n}": key for n, key in enumerate(settings, first)}
    given |= {f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(settings.values(), first)}
    given |= {"GIT_CONFIG_COUNT": str(first + len(settings)), "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
    return {**os.environ, **given, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


def _git(root: Path, timeout_s: float, environ: Mapping[str, str], *arguments: str) -> str | None:
    git = find_program("git")
    if git is None:
        return None
    command = [git, "--no-pager", "-C", str(root), *arguments]
    try:
        ended = run(command, env=environ, limit_s=timeout_s)
        return ended.output.decode() if ended.succeeded else None
    except (OSError, UnicodeDecodeError):
        return None


def _both(old: Mapping[str, Any], new: Mapping[str, Any], part: str, key: str) -> tuple[Any, Any]:
    return (old.get(part) or {}).get(key), (new.get(part) or {}).get(key)


def _formatted(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text


def data_behind(run: RunDirectory, project: Project) -> list[str]:
    """The versions of data sets that a run, and the runs that it was fine-tuned or forked from, trained on.

    Each is "name@<64 digits>". Raises CheckpointError for a run whose record of where it came from cannot be read.
    """
    references: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [run]
    while waiting:
        provenance = _known_provenance(one := waiting.pop(), run)
        seen.add(one.name)
        if reference := (provenance.get("dataset") or {}).get("reference"):
            references[reference] = None
        base = provenance.get("finetuned_from") or {}
        references |= dict.fromkeys(base.get("data", ()))
        before = [base.get("run"), provenance.get("forked_from")]
        waiting += [
            project.run(name) for name in before if isinstance(name, str) and "@" not in name and name not in seen
        ]
    return list(references)


def _known_provenance(one: RunDirectory, run: RunDirectory) -> dict[str, Any]:
    """The provenance of a run that `run` goes back to; empty if it was imported. Raises CheckpointError."""
    found = read_provenance(one)
    if found or (one.imported.exists() and not one.provenance.exists()):
        return found
    why = f"{one.provenance} {'cannot be read' if one.provenance.exists() else 'is missing'}"
    if one.name != run.name:
        why = f"it goes back to run {one.name}, and {why}"
    raise CheckpointError(f"the data behind {run.title} is not known", why, f"restore {one.path} from a copy")
