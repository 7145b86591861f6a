"""A program that is killed before and after each change that an act of the registry makes.

    python killed_acts.py ACT FOLDER [--power] [--every N]

After each kill, the alias means the old version or the new one, and all digests are right. Asked again with the same
request id, the act leaves the files and entries that the undisturbed one did. The program prints the number of kills.
With --power, files lose at each kill what had not been flushed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from faulty_files import kill_at_each_change

from aifx.core.artifact import Artifact, seal, seal_files
from aifx.core.files import LOCK
from aifx.core.project import Project
from aifx.core.stores import BLOCK_BYTES, open_store
from aifx.registry.acts import (
    Caller,
    approve,
    attest_file,
    attest_version,
    copy_version,
    promote,
    push,
    remove,
    rollback,
    set_policy,
    tag,
)
from aifx.registry.ledger import Entry, find_request
from aifx.registry.policy import FIRST, change_policy
from aifx.registry.reports import pull_version, verify_root
from aifx.registry.roots import KIND, VERSION, Root

REQUEST = "the-act"
POLICY = '[aliases."*"]\neval = {}\n'
WITHOUT_ENTRY = ("push_again", "pull")

LARGE = BLOCK_BYTES * 5 // 2
"""Bytes of a file that goes to S3 in three parts."""


def root_in(folder: Path) -> Root:
    return Root(open_store(str(folder / "registry")))


def ask(request: str | None = None) -> Caller:
    return Caller("ann", request)


def push_text(root: Root, text: str, request: str | None = None) -> None:
    """Push a version whose weights are a text."""

    def write(folder: Path) -> Artifact:
        (folder / "weights").write_text(text)
        artifact = Artifact(KIND, VERSION, {}, seal_files(folder, [folder / "weights"]))
        seal(folder, artifact)
        return artifact

    push(root, "fraud", write, {}, ask(request))


class Waiting(ThreadPoolExecutor):
    """A pool whose caller waits for each call, so that the calls of all threads always come in one order."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        made = super().submit(*args, **kwargs)
        wait([made])
        return made


def push_run(root: Root) -> None:
    """Push a run, whose weights are written in small blocks. They are flushed in a thread after each of them."""
    from aifx.checkpoint import stored  # which opens TensorStore
    from aifx.registry import weight_file
    from aifx.registry.versions import write_version

    project = project_beside(Path(root.store.path).parent)
    blocks = [mock.patch.object(module, "BLOCK_BYTES", 1024) for module in (stored, weight_file)]
    with blocks[0], blocks[1], mock.patch.object(weight_file, "ThreadPoolExecutor", Waiting):
        push(root, "fraud", partial(write_version, project.run("main"), project, 1), {}, ask(REQUEST))


def project_beside(folder: Path) -> Project:
    """The project whose run `push_run` pushes, beside the folders in which it is killed."""
    return Project(folder.parent / "project")


def attest_eval(root: Root, reference: str, request: str | None = None) -> None:
    gates = [{"expr": "accuracy >= 0.8", "value": 0.9, "passed": True}]
    attest_version(root, reference, "eval", {"metrics": {}, "gates": gates}, None, ask(request))


def other_root(root: Root) -> Root:
    """The root to which `copy` copies."""
    return Root(root.store.beside(f"{root.store.path.rpartition('/')[2]}-other"))


def withdraw(root: Root, request: str | None = None) -> None:
    remove(root, "fraud@v3", lambda state, version: [], ask(request))


def prepare(act: str, folder: Path) -> None:
    folder.mkdir()
    fill(root_in(folder), act)
    if act == "push_run":
        import model_runs  # which imports JAX

        project = project_beside(folder)
        model_runs.make_run(model_runs.make_project(project.root, model_runs.TABLE), "model.embed_dim=32")


def fill(root: Root, act: str = "") -> None:
    """Three versions, of which production has meant the first, and means the second; an empty root for `init`."""
    if act == "init":
        return
    change_policy(root, POLICY, "policy.toml", "ann", None, None)
    for number, text in enumerate("abc", 1):
        push_text(root, text)
        attest_eval(root, f"fraud@v{number}")
    for version in ("v1", "v2"):
        promote(root, f"fraud@{version}", "production", ask())
    attest_file(root, "fraud@v2", "CARD.md", b"card", None, ask())
    if act == "push_back":
        withdraw(root)


ACTS: dict[str, Callable[[Root], object]] = {
    "push": lambda root: push_text(root, "d", REQUEST),
    "push_run": push_run,
    "push_large": lambda root: push_text(root, "d" * LARGE, REQUEST),
    "push_again": lambda root: push_text(root, "c", REQUEST),
    "push_back": lambda root: push_text(root, "c", REQUEST),
    "tag": lambda root: tag(root, "fraud@v2", {"team": "risk"}, (), ask(REQUEST)),
    "attest": lambda root: attest_eval(root, "fraud@v3", REQUEST),
    "attest_file": lambda root: attest_file(root, "fraud@v3", "CARD.md", b"card", None, ask(REQUEST)),
    "approve": lambda root: approve(root, "fraud@v3", "production", None, Caller("bob", REQUEST)),
    "promote": lambda root: promote(root, "fraud@v3", "production", ask(REQUEST)),
    "rollback": lambda root: rollback(root, "fraud", "production", None, ask(REQUEST)),
    "copy": lambda root: copy_version(root, "fraud@v2", other_root(root), ask(REQUEST)),
    "pull": lambda root: pull_version(root, "fraud@v2", Path(root.store.path).with_name("pulled")),
    "remove": lambda root: withdraw(root, REQUEST),
    "init": lambda root: set_policy(root, None, None, ask(REQUEST)),
    "policy": lambda root: change_policy(root, FIRST, "policy.toml", "ann", None, REQUEST),
}


def write(act: str, folder: Path) -> None:
    ACTS[act](root_in(folder))


def entries(root: Root) -> list[Entry]:
    """The entries of all ledgers, those of a copy too."""
    roots = (root, other_root(root))
    return [entry for one in roots for entry in (*one.policy.entries(), *_of_models(one))]


def _of_models(root: Root) -> list[Entry]:
    return [entry for name in root.names() for entry in root.state(name).entries]


def said(root: Root) -> list[tuple[object, ...]]:
    """What the ledgers say, without times."""
    return [
        (one.number, one.action, one.version, one.alias, one.actor, one.request == REQUEST) for one in entries(root)
    ]


def live(root: Root) -> str | None:
    """The version that production means."""
    found = root.state("fraud") if root.names() else None
    return found.label(found.aliases["production"].version) if found else None


def check_whole(root: Root) -> None:
    for one in (root, other_root(root)):
        problems = verify_root(one, (), ()).problems
        assert not problems, problems


def files(folder: Path) -> dict[str, bytes]:
    """The files of versions, by path: they have the same bytes whenever they are made.

    An empty lock is not among them, which `publish` deletes after the folder is in its place.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    named = {str(path.relative_to(folder)): path for path in paths}
    return {name: path.read_bytes() for name, path in named.items() if name.startswith("pulled") or "versions" in name}


def check(act: str, folder: Path, calm: Path) -> None:
    root, undisturbed = root_in(folder), root_in(calm)
    assert live(root) in (None if act == "init" else "v2", live(undisturbed))
    check_whole(root)
    write(act, folder)
    write(act, folder)
    assert said(root) == said(undisturbed)
    assert act in WITHOUT_ENTRY or find_request(entries(root), REQUEST)
    check_whole(root)
    assert files(folder) == files(calm)
    assert {path.name for path in folder.rglob("*") if path.is_dir()} == {
        path.name for path in calm.rglob("*") if path.is_dir()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("act")
    parser.add_argument("place", type=Path)
    parser.add_argument("--power", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    acts = [partial(function, given.act) for function in (prepare, write, check)]
    kills = kill_at_each_change(given.place, *acts, every=given.every, loses_power=given.power)
    print(kills)  # noqa: T201
