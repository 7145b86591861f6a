"""Facts that the processes of a job must have in common, compared before the first step.

A process with another flag, file or kernel would train another model on its part of each batch, and no error would say
so.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

import jax_kernels
from aifx.config import Config
from aifx.core.digests import Sha256, sha256_of
from aifx.core.files import open_file
from aifx.core.project import Project
from aifx.machine.host import versions
from aifx.parallel.group import Disagreement, Group
from aifx.runs.provenance import NUMERIC_PACKAGES, flags_of_numbers
from jax_kernels.dispatch import Choices
from jax_kernels.op import Choice

MAX_LINES = 8
SEEN_S = 10.0
"""Longest time that a file of process 0 takes to appear on the other nodes."""

OF_A_PROCESS = re.compile(r"JAX_(COORDINATOR|PROCESS|NUM_PROCESS|LOCAL)\w*|NCCL_(SOCKET_IFNAME|IB_HCA|DEBUG\w*)")
"""Flags that differ between the processes of a job as a rule."""

Facts = Mapping[str, Any]
"""JSON by name. Values are shown in errors, so long ones are digests."""


def agree(group: Group, facts: Callable[[], Facts]) -> None:
    """Compare facts with those of process 0. Raises Disagreement in all processes if one differs.

    A job of one process does not collect them: digests of all its sources take as long as a small model's compilation.
    """
    if group.size == 1:
        return
    found = group.gather({"host": socket.gethostname(), "facts": facts()})
    lines = group.broadcast(differences(found))
    if lines:
        what = "the processes of this job differ, and none of them has begun"
        hint = "start all processes with the same project, settings, packages and environment"
        more = [f"and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
        raise Disagreement(what, "\n".join([*lines[:MAX_LINES], *more]), hint)


def check_shared(group: Group, folder: Path, name: str, hint: str, *, is_needed: bool = True) -> None:
    """Raise Disagreement in all processes unless all of them see the `folder` of process 0, which holds the run.

    Process 0 creates a file of a new name, and the others look for it. A name that a node has never looked for is in
    no cache of its NFS client.

    Args:
        name: of the folder, for the error.
        is_needed: otherwise nothing is checked if process 0 cannot write there.
    """
    if group.size == 1:
        return
    path = folder / f".seen.{secrets.token_hex(6)}.tmp"  # `remove_temporary` removes it after a kill
    try:
        is_there = group.is_first and _is_made(path, is_needed)
        if not group.broadcast(is_there):
            return
        path = folder / group.broadcast(path.name)
        deadline = time.monotonic() + SEEN_S
        while not (is_seen := path.exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        found = group.gather({"host": socket.gethostname(), "is_seen": is_seen})
        blind = group.broadcast([f"{index} on {one['host']}" for index, one in enumerate(found) if not one["is_seen"]])
        host = group.broadcast(socket.gethostname())
    finally:
        if group.is_first:
            path.unlink(missing_ok=True)
    if blind:
        what = f"process {', '.join(blind[:MAX_LINES])} does not see {name} of process 0"
        raise Disagreement(what, f"{folder} on {host} is another folder there: the nodes do not share it", hint)


def _is_made(path: Path, is_needed: bool) -> bool:
    """Create a file. Returns whether it is there; raises what failed if it is needed."""
    try:
        os.close(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError:
        if is_needed:
            raise
        return False
    return True


def differences(processes: list[dict[str, Any]]) -> list[str]:
    """A line for each value that differs from that of process 0, with the processes that have it."""
    if not processes:
        return []
    first = processes[0]["facts"]
    who: dict[tuple[str, str], list[str]] = {}
    for index, process in enumerate(processes):
        facts = process["facts"]
        for name in sorted({*first, *facts}):
            if facts.get(name) != first.get(name):
                who.setdefault((name, _formatted(facts, name)), []).append(f"{index} on {process['host']}")
    return [
        f"{name}: {value} in process {', '.join(where)}, {_formatted(first, name)} in process 0"
        for (name, value), where in who.items()
    ]


def _formatted(facts: Facts, name: str) -> str:
    return repr(facts[name]) if name in facts else "not set"


def share_choices(group: Group, kernels: Choices, trace: Callable[[], object]) -> None:
    """Let all processes run each call of jax_kernels as process 0 does, which traces the programs that make them."""
    if group.size == 1:
        return
    if group.is_first:
        trace()
    made = group.broadcast({key: choice.document() for key, choice in kernels.made.items()})
    if not group.is_first:
        kernels.made.update({key: Choice.from_document(document) for key, document in made.items()})


def facts_of_start(config: Config, **options: Any) -> Facts:
    """The facts that are known before any file is opened: configuration, packages, flags and the code of aifx."""
    settings = {f"{section}.{key}": v for section, values in config.values().items() for key, v in values.items()}
    found = versions()
    packages = {f"version of {name}": found.get(name) for name in NUMERIC_PACKAGES}
    environment = {k: v for k, v in flags_of_numbers(os.environ).items() if not OF_A_PROCESS.fullmatch(k)}
    ours = [Path(__file__).parents[1], Path(str(jax_kernels.__file__)).parent]  # `import aifx` would close a circle
    sources = [path for folder in ours for path in folder.rglob("*.py")]
    return {**settings, **packages, **environment, **options, "code of aifx": digest_of_files(sources)}


def facts_of_data(project: Project, data_digest: str, device_kind: str, **options: Any) -> Facts:
    """The facts that are known when the data is open and the project's own code is imported."""
    root = project.root.resolve()
    files = {Path(file).resolve() for m in list(sys.modules.values()) if (file := getattr(m, "__file__", None))}
    own = [path for path in files if path.is_relative_to(root)]
    code = digest_of_files(own, root)
    return {**options, "digest of the data": data_digest[:16], "code of the project": code, "device": device_kind}


def facts_of_program(lowered: jax.stages.Lowered, kernels: Choices | None) -> Facts:
    """The facts that are known when the step is traced: the implementation of each op's call, and the program."""
    made = kernels.made if kernels is not None else {}
    chosen = {f"kernel of {key}": choice.implementation for key, choice in made.items()}
    program = sha256_of(lowered.as_text())
    return {**chosen, "digest of the program": program[:16]}


def digest_of_files(paths: list[Path], root: Path | None = None) -> str:
    """SHA-256 over the content of files, and over their names below `root` (by default below their package)."""
    digest = Sha256()
    for name, path in sorted((str(path.relative_to(root)) if root else path.name, path) for path in paths):
        digest.update(f"{name}\0".encode() + Sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
