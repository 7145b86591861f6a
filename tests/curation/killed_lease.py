"""A program that is killed before and after each change that it makes to its lease, one after the other.

    python killed_lease.py FOLDER FIRST EVERY

After each kill, the lease is whole, keeps what it kept, and the next command renews it. The program prints the number
of kills.
"""

from __future__ import annotations

import sys
from pathlib import Path

from faulty_files import kill_at_each_change
from toy_steps import Rows, WithoutLetter

from aifx.core.project import Project
from aifx.curation.execution import execute
from aifx.curation.leftovers import collect_garbage
from aifx.curation.step import Limits
from aifx.curation.unused import with_unused
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.leases import LEASES, Use, leased_uses, renew_lease

LETTERS = "abcd"


def catalog_of(root: Path) -> Catalog:
    return open_catalog("../shared", Project(root / "project"))


def reference(root: Path, letter: str) -> str:
    catalog = catalog_of(root)
    found = (catalog.manifest(f"pets@{version}") for version in catalog.versions("pets"))
    return next(one.whole_reference for one in found if one.step.settings.get("letter") == letter)


def prepare(root: Path) -> None:
    """A version for each letter: a run used the first, a command read the second."""
    (root / "project").mkdir(parents=True)
    made = open_catalog(str(root / "shared"))
    parent = execute(Rows((), (("a bird", "an ox"),)), "pets", made, Limits(1 << 30, 1)).version
    for letter in LETTERS:
        execute(WithoutLetter((parent,), letter), "pets", made, Limits(1 << 30, 1))
    execute(Rows((), (("a cow",),)), "pets", made, Limits(1 << 30, 1))
    renew_lease(made.store, Project(root / "project"), [Use(reference(root, "a"), "run first")])
    catalog_of(root).open(reference(root, "b"))


def write(root: Path) -> None:
    """Begin a run on the third version, and read the fourth."""
    catalog = catalog_of(root)
    uses = [Use(reference(root, letter), f"run on {letter}") for letter in "ac"]
    renew_lease(catalog.store, Project(root / "project"), uses)
    catalog.open(reference(root, "d"))


def leased(root: Path) -> set[str]:
    return {use.reference for use in leased_uses(catalog_of(root).store)}


def check(root: Path, calm: Path) -> None:
    """What was leased before the kill still is, after a gc of another project, too. Then write again."""
    catalog, references = catalog_of(root), [reference(root, letter) for letter in LETTERS]
    assert leased(root) >= set(references[:2])
    collect_garbage(catalog, dry_run=False)
    assert not [path for path in (root / "shared" / LEASES).iterdir() if path.suffix != ".json"]
    write(root)
    assert leased(root) == leased(calm) == set(references)
    assert len(catalog.store.files(LEASES)) == 1
    found = with_unused(collect_garbage(catalog, dry_run=True), catalog, leased_uses(catalog.store), days=0)
    assert not [one for one in found.deleted if one.kind == "unused"], found.deleted
    assert len(found.kept) == len(LETTERS) + 1


if __name__ == "__main__":
    kills = kill_at_each_change(
        Path(sys.argv[1]), prepare, write, check, first=int(sys.argv[2]), every=int(sys.argv[3])
    )
    sys.stdout.write(str(kills))
