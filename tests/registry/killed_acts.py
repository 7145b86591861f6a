"""A program that is killed before and after each change that an act of the registry makes.

    python killed_acts.py ACT FOLDER

After each kill, the alias means the old version or the new one, and all digests are right. Asked again with the same
request id, the act ends as the undisturbed one did. The program prints the number of kills.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faulty_files import kill_at_each_change

from aifx.core.artifact import Artifact, is_unfinished, seal, seal_files
from aifx.core.files import is_temporary
from aifx.core.stores import open_store
from aifx.registry.acts import Caller, approve, attest_file, attest_version, promote, push, remove, rollback
from aifx.registry.ledger import find_request
from aifx.registry.policy import FIRST, change_policy
from aifx.registry.reports import verify_root
from aifx.registry.roots import KIND, VERSION, Root

REQUEST = "the-act"
POLICY = '[aliases."*"]\neval = {}\n'


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


def attest_eval(root: Root, reference: str, request: str | None = None) -> None:
    gates = [{"expr": "accuracy >= 0.8", "value": 0.9, "passed": True}]
    attest_version(root, reference, "eval", {"metrics": {}, "gates": gates}, None, ask(request))


def prepare(folder: Path) -> None:
    fill(root_in(folder))


def fill(root: Root) -> None:
    """Three versions, of which production has meant the first, and means the second."""
    change_policy(root, POLICY, "policy.toml", "ann", None, None)
    for number, text in enumerate("abc", 1):
        push_text(root, text)
        attest_eval(root, f"fraud@v{number}")
    for version in ("v1", "v2"):
        promote(root, f"fraud@{version}", "production", ask())


ACTS: dict[str, Callable[[Root], object]] = {
    "push": lambda root: push_text(root, "d", REQUEST),
    "push_again": lambda root: push_text(root, "c", REQUEST),
    "attest": lambda root: attest_eval(root, "fraud@v3", REQUEST),
    "attest_file": lambda root: attest_file(root, "fraud@v3", "CARD.md", b"card", None, ask(REQUEST)),
    "approve": lambda root: approve(root, "fraud@v3", "production", None, Caller("bob", REQUEST)),
    "promote": lambda root: promote(root, "fraud@v3", "production", ask(REQUEST)),
    "rollback": lambda root: rollback(root, "fraud", "production", None, ask(REQUEST)),
    "remove": lambda root: remove(root, "fraud@v3", lambda state, version: [], ask(REQUEST)),
    "policy": lambda root: change_policy(root, FIRST, "policy.toml", "ann", None, REQUEST),
}


def write(act: str, folder: Path) -> None:
    ACTS[act](root_in(folder))


def said(root: Root) -> tuple[object, ...]:
    """What the ledgers say, without times."""
    entries = [*root.policy.entries(), *root.state("fraud").entries]
    return tuple((one.number, one.action, one.version, one.alias, one.actor, one.request == REQUEST) for one in entries)


def check(act: str, folder: Path, calm: Path) -> None:
    root, undisturbed = root_in(folder), root_in(calm)
    before, after = "v2", undisturbed.state("fraud")
    state = root.state("fraud")
    assert state.label(state.aliases["production"].version) in (
        before,
        after.label(after.aliases["production"].version),
    )
    problems = verify_root(root, (), ()).problems
    assert not problems, problems
    write(act, folder)
    write(act, folder)
    assert said(root) == said(undisturbed)
    assert act == "push_again" or find_request([*root.policy.entries(), *root.state("fraud").entries], REQUEST)
    problems = verify_root(root, (), ()).problems
    assert not problems, problems
    versions = folder / "registry" / "models" / "fraud" / "versions"
    assert sorted(path.name for path in versions.iterdir()) == sorted(
        path.name for path in (calm / versions.relative_to(folder)).iterdir()
    )
    left = [path for path in versions.rglob("*") if is_unfinished(path.name) or is_temporary(path.name)]
    assert not left, left


if __name__ == "__main__":
    act, place = sys.argv[1], Path(sys.argv[2])
    print(kill_at_each_change(place, prepare, partial(write, act), partial(check, act)))  # noqa: T201
