"""A program that is killed before and after each change that it makes to the files of a data set, one after the other.

    python killed_writer.py WRITER FOLDER FIRST EVERY

It is killed before the change FIRST, from 0, and each EVERY changes on. After each kill, the versions are whole. `aifx
data gc` deletes what is left, and the same command makes what an undisturbed one makes, with and without `gc` before
it. The program prints the number of kills.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from adding import add
from faulty_files import kill_at_each_change
from prose import prose
from toy_steps import Rows, WithoutLetter

from aifx.commands.main import run
from aifx.core.files import is_temporary
from aifx.core.json_values import encode_json
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.core.stores import open_store
from aifx.curation.add_plan import added_version
from aifx.curation.duplicates import Dedupe, Split
from aifx.curation.erasure import erase, plan_erasure
from aifx.curation.execution import execute
from aifx.curation.leftovers import collect_garbage
from aifx.curation.mix import Mix
from aifx.curation.step import Limits
from aifx.curation.unused import with_unused
from aifx.data.sections import TextSection
from aifx.data.text import TextFormat
from aifx.data.versions.catalog import Catalog, check_files, open_catalog
from aifx.data.versions.leases import Use
from aifx.data.versions.manifest import CONTINUES, LINEAGE
from aifx.data.versions.requests import REQUESTS
from aifx.search.building import build_index
from aifx.search.embedders import HashedNgrams
from aifx.search.indexes import IndexSettings
from aifx.verbs.data_add import data_add
from aifx.verbs.recipes import data_make

LIMITS = Limits(1 << 30, 1)
TEXTS = tuple(tuple(prose(60, 10 * shard + row) for row in range(3)) for shard in range(2))


def catalog_of(root: Path) -> Catalog:
    return open_catalog(str(root / "datasets"))


def collect_files(root: Path) -> None:
    add(root, "corpus", "raw")


def clean(root: Path) -> None:
    execute(WithoutLetter((catalog_of(root).open("pets"),), "q"), "pets", catalog_of(root), LIMITS)


def clean_more(root: Path) -> None:
    """Refers to the shards of an earlier version for rows that were cleaned before."""
    clean(root)


def purge_shared(root: Path) -> None:
    """Files of the versions that are deleted are taken over by versions that stay."""
    purge(root)


def dedupe(root: Path) -> None:
    execute(Dedupe((catalog_of(root).open("pets"),), 0.8), "pets", catalog_of(root), LIMITS)


def split_again(root: Path) -> None:
    """Continue the split of the rows that were there before."""
    added = added_version(catalog_of(root), "grown")
    assert added is not None
    made = execute(Split((added,), 0.3, 0.3, 0.8), "grown", catalog_of(root), LIMITS).version
    assert CONTINUES in made.manifest.facts


ADD = '{ add = { sources = ["raw"], license = "MIT", max_bad = 1.0 } }'
STEPS = (
    "{ clean = { rules = [] } }",
    "{ dedupe = { near = 0.8 } }",
    "{ pii = { mask = true } }",
    '{ expect = { rules = [{ check = "rows", at_least = 5 }] } }',
)


def make_recipe(root: Path, *steps: str) -> None:
    """Several steps make one version, from a version with a quarantine."""
    (root / "recipe.toml").write_text(f"[corpus]\nsteps = [{', '.join([ADD, *(steps or STEPS)])}]\n")
    made = data_make(project=root, workers=1)
    assert len({step.reference for step in made.data_sets[0].steps}) == 2


def read_database(root: Path) -> None:
    url, sql = f"sqlite:///{root.parent / 'rows.db'}", "SELECT * FROM t"
    command = ["data", "add", "corpus", url, "--query", sql, "--license", "MIT", "--root", str(root / "datasets")]
    assert run(command) == 0


def index(root: Path) -> None:
    embedder = HashedNgrams(8)
    build_index(
        catalog_of(root).open("pets"), IndexSettings("text", embedder.record), embedder, catalog_of(root), LIMITS
    )


def tokenize(root: Path) -> None:
    section = TextSection(dataset="pets", seq_len=16, tokenizer="byte", split="block", test_fraction=0.0)
    TextFormat.open(section, Project(root), root.parent / "assets")


def purge(root: Path) -> None:
    limits = LIMITS.memory_bytes
    where = f"text = '{TEXTS[0][1]}'" if sys.argv[1] == "purge_shared" else "_row LIKE 's0%'"
    plan, step = plan_erasure(catalog_of(root), None, "pets", where, purge=True, dry_run=False, memory_bytes=limits)
    if plan.rows:
        erase(catalog_of(root), plan, step, LIMITS)


def collect_unused(root: Path) -> None:
    """Delete versions that nothing refers to and that have files of each other, beside some that stay."""
    catalog = catalog_of(root)
    without_x = [one for one in map(catalog.manifest, references(catalog)) if one.step.settings.get("letter") == "x"]
    newest = max(without_x, key=lambda one: one.rows)
    found = collect_garbage(catalog, dry_run=False)
    with_unused(found, catalog, [Use(newest.whole_reference, "run main")], days=0)


REQUEST = "tick-7.station-1"
TWICE = f"""
[corpus]
steps = [{ADD}, {{ dedupe = {{ near = 0.8 }} }}]

[both]
steps = [{{ mix = {{ sets = ["corpus:1", "pets:1"] }} }}]
"""


def ask(root: Path, *sources: str, max_bad: float = 1.0) -> Result:
    """Ask for an addition to "corpus", once."""
    files = [root.parent / "given" / source for source in sources]  # which all copies of a root have
    return data_add("corpus", *files, license="MIT", max_bad=max_bad, workers=1, project=root, request=REQUEST)


ASKED: dict[str, Callable[[Path], Result]] = {
    "add_once": lambda root: ask(root, "a.jsonl", "c.txt"),
    "add_nothing_once": lambda root: ask(root, "a.jsonl"),
    "refuse_once": lambda root: ask(root, "a.jsonl", "c.txt", max_bad=0),
    "make_once": lambda root: data_make(recipe=root / "twice.toml", workers=1, project=root, request=REQUEST),
}
"""Requests, which change what a name means once."""


WRITERS: dict[str, Callable[[Path], object]] = ASKED | {
    writer.__name__: writer
    for writer in (
        collect_files,
        clean,
        clean_more,
        dedupe,
        split_again,
        make_recipe,
        read_database,
        index,
        tokenize,
        purge,
        purge_shared,
        collect_unused,
    )
}


def prepare(root: Path) -> None:
    """A data set with a version, its index and its tokens, and files to collect rows from."""
    (root / "raw").mkdir(parents=True)
    rows = [json.dumps({"text": text, "n": number}) + "\n" for number, text in enumerate(TEXTS[0])]
    (root / "raw" / "a.jsonl").write_text("".join([*rows, "no JSON\n"]))
    (root / "raw" / "b.csv").write_text("text,n\n" + "".join(f'"{text}",1\n' for text in TEXTS[1]))
    (root / "raw" / "c.txt").write_text(TEXTS[0][0])
    execute(Rows((), TEXTS), "pets", catalog_of(root), LIMITS)
    with sqlite3.connect(root.parent / "rows.db") as database:
        database.execute("CREATE TABLE t (id, text)")
        database.executemany("INSERT INTO t VALUES (?, ?)", enumerate(TEXTS[0]))
    (root / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    if sys.argv[1] == "make_recipe":
        make_recipe(root, "{ dedupe = {} }")
    if sys.argv[1] in ASKED:  # the name means what a step made of the rows that were added
        shutil.copytree(root / "raw", root.parent / "given")
        add(root, "corpus", "../given/a.jsonl", kind="text")
        execute(WithoutLetter((catalog_of(root).open("corpus"),), "q"), "corpus", catalog_of(root), LIMITS)
        (root / "twice.toml").write_text(TWICE)
    if sys.argv[1] == "split_again":
        for count in (20, 40):
            rows = [json.dumps({"text": prose(60, number)}) + "\n" for number in range(count)]
            (root / f"{count}.jsonl").write_text("".join(rows))
            added = add(root, "grown", f"{count}.jsonl").version
            if count == 20:
                execute(Split((added,), 0.3, 0.3, 0.8), "grown", catalog_of(root), LIMITS)
    if sys.argv[1] in ("clean_more", "purge_shared"):
        clean(root)
        for other in range(1 + (sys.argv[1] == "purge_shared")):
            # the purge deletes the versions of both shards of TEXTS; the others stay, and have the second shard of one
            texts = ((f"no {other}",), TEXTS[1]) if sys.argv[1] == "purge_shared" else (*TEXTS, ("new",))
            execute(Rows((), texts), "pets", catalog_of(root), LIMITS)
            if sys.argv[1] == "purge_shared":
                clean(root)
    if sys.argv[1] == "collect_unused":
        grow(root)
    if sys.argv[1] == "purge":
        index(root)
        tokenize(root)


def grow(root: Path) -> None:
    """Versions of more and more rows, without a letter each; one has an index and tokens, and is in a mix."""
    for count in range(3):
        texts = (*TEXTS, *((f"new {number}",) for number in range(count)))
        rows = execute(Rows((), texts), "pets", catalog_of(root), LIMITS).version
        for letter in "qzx":
            made = execute(WithoutLetter((rows,), letter), "pets", catalog_of(root), LIMITS).version
            assert bool(made.manifest.holders) == bool(count)
            if (count, letter) == (1, "q"):
                index(root)
                tokenize(root)
                execute(Mix((made, rows), (1.0, 2.0), (None, None)), "mixed", catalog_of(root), LIMITS)
    execute(Rows((), TEXTS[:1]), "pets", catalog_of(root), LIMITS)
    execute(Rows((), TEXTS[:1]), "mixed", catalog_of(root), LIMITS)


def content(root: Path) -> dict[str, str]:
    """A digest of each file of the data sets but locks, the history, which has times, and the outcomes of requests.

    These say whether a version was there already, which a kill changes.
    """
    files = [path for path in (root / "datasets").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != ".lock" and (not {LINEAGE, REQUESTS}.intersection(path.parts) or is_temporary(path.name))
    }


def references(catalog: Catalog) -> list[str]:
    return [f"{name}@{version}" for name in catalog.names() for version in catalog.versions(name)]


def check_versions(catalog: Catalog) -> list[str]:
    """The versions, each of which is whole."""
    found = references(catalog)
    for name, _, version in (reference.partition("@") for reference in found):
        damages = check_files(open_store(f"{catalog.local}/{name}/{version}"), name, version).damages
        assert not damages, damages
    return found


def check_repeated(root: Path, calm: Path, ask: Callable[[Path], Result]) -> None:
    """Ask again for what was done, when others have moved the name on: it stays, and the outcome is the first one."""
    catalog = catalog_of(root)
    for name in ("corpus", "both"):
        if catalog.latest(name) is not None:
            execute(WithoutLetter((catalog.open("pets"),), "z"), name, catalog, LIMITS)
    before, outcomes = content(root), [outcome(ask(folder)) for folder in (root, calm)]
    assert outcomes[0] == outcomes[1], outcomes
    assert '"is_repeated": true}' in outcomes[0]
    assert content(root) == before


def outcome(result: Result) -> str:
    """An outcome without what a kill changes: whether the version was there already."""
    return re.sub(r'"is_new": (true|false)', "", encode_json(result.document()))


def check(root: Path, write: Callable[[Path], object], expected: dict[str, str], *, collects: bool) -> None:
    """Ask again after a kill."""
    catalog = catalog_of(root)
    before = check_versions(catalog)
    if collects:
        planned = collect_garbage(catalog, dry_run=True)
        assert not planned.kept, planned.kept
        assert collect_garbage(catalog, dry_run=False).deleted == planned.deleted
        assert not collect_garbage(catalog, dry_run=False).deleted
        assert check_versions(catalog) == before
        unfinished = [path for path in content(root) if "/." in path.replace("/.tokens/", "/") or ".tmp" in path]
        assert not unfinished, unfinished
    write(root)
    check_versions(catalog)
    assert not collect_garbage(catalog, dry_run=False).kept
    found = content(root)
    assert found == expected, sorted(found.items() ^ expected.items())


def main(name: str, folder: Path, first: int, every: int) -> None:
    write = WRITERS[name]

    def check_both(root: Path, calm: Path) -> None:
        check_versions(catalog_of(calm))
        expected, other = content(calm), root.with_name("other")
        shutil.copytree(root, other)
        check(root, write, expected, collects=True)
        check(other, write, expected, collects=False)
        shutil.rmtree(other)
        if name in ASKED:
            check_repeated(root, calm, ASKED[name])

    def write_once(root: Path) -> None:
        write(root)

    how = {"first": first, "every": every}
    kills = kill_at_each_change(folder, prepare, write_once, check_both, below="datasets", **how)
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
