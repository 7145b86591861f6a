"""Documents on disk name versions with whole digests, and a folder's name stands for no other version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import inprocess
import pytest
from toy_steps import Rows, WithoutLetter

from aifx.core import artifact, files
from aifx.core.artifact import MANIFEST, read_artifact, short
from aifx.core.errors import DataError, UsageError
from aifx.core.stores import open_store
from aifx.curation.execution import execute
from aifx.curation.history import lineage_of
from aifx.curation.reports import list_versions
from aifx.curation.step import Limits
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.lineage import read_lineage
from aifx.data.versions.manifest import CROISSANT, KIND, VERSION, Version

LIMITS = Limits(1 << 30, 1)


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def chain(catalog: Catalog) -> list[Version]:
    parent = execute(Rows((), (("a cat", "a dog"), ("an ox", "hi"))), "pets", catalog, LIMITS).version
    return [parent, execute(WithoutLetter((parent,), "d"), "pets", catalog, LIMITS).version]


def other_digits(digest: str, first: int) -> str:
    """The digest with other digits from the one numbered `first`."""
    return digest[:first] + "".join("1" if digit == "0" else "0" for digit in digest[first:])


def test_a_version_is_the_artefact_of_its_manifest(chain: list[Version]) -> None:
    for version in chain:
        found = read_artifact(version.path, KIND, VERSION)
        assert found.digest == version.manifest.sha256 == version.manifest.artifact().digest
        assert version.path.name == short(found.digest)
        assert found.notes["name"] == "pets"
        assert {path.name for path in version.shards} == {
            name.removeprefix("shards/") for name in found.files if name.startswith("shards/")
        }


def test_documents_on_disk_name_parents_with_whole_digests(catalog: Catalog, chain: list[Version]) -> None:
    parent, made = chain
    whole = f"pets@{parent.manifest.sha256}"
    assert json.loads((made.path / MANIFEST).read_text())["content"]["parents"] == [whole]
    assert json.loads((made.path / CROISSANT).read_text())["isBasedOn"] == [whole]
    (event,) = read_lineage(catalog, made.manifest.whole_reference)
    (given,) = event["inputs"]
    assert f"{given['name']}@{given['facets']['version']['datasetVersion']}" == whole
    (listed,) = (one for one in list_versions(catalog).versions if one.is_latest)
    assert (listed.reference, listed.parents) == (made.reference, (parent.reference,))
    lineage = lineage_of(catalog, "pets", None)
    assert [one.reference for one in lineage.versions] == [made.reference, parent.reference]
    assert lineage.versions[0].parents == (parent.reference,)


def test_all_digits_that_are_given_are_compared(catalog: Catalog, chain: list[Version]) -> None:
    parent = chain[0]
    digest = parent.manifest.sha256
    for num_digits in (4, 12, 13, 64):
        reference = f"pets@{digest[:num_digits]}"
        assert catalog.find(reference) == ("pets", short(digest))
        assert catalog.open(reference).manifest == catalog.manifest(reference) == parent.manifest
    for first in (12, 63):
        with pytest.raises(UsageError, match="names no version"):
            catalog.find(f"pets@{other_digits(digest, first)}")
        with pytest.raises(UsageError, match="names no version"):
            catalog.open(f"pets@{other_digits(digest, first)}")


def test_a_parent_with_the_same_beginning_is_no_parent(catalog: Catalog, chain: list[Version]) -> None:
    """The folder of the parent holds a version with another digest, as if 48 bits had proved something."""
    parent, made = chain
    shutil.copy(made.path / MANIFEST, parent.path / MANIFEST)
    for reference in (parent.reference, parent.manifest.whole_reference):
        with pytest.raises(DataError, match="is damaged"):
            catalog.open(reference)
    assert [one.reference for one in list_versions(catalog).unreadable] == [parent.reference]


@pytest.mark.parametrize("made_by", ["an older aifx", "a later aifx"])
def test_a_listing_says_which_format_a_manifest_has(
    catalog: Catalog, chain: list[Version], tmp_path: Path, made_by: str
) -> None:
    manifest = chain[1].path / MANIFEST
    found = read_artifact(chain[1].path, KIND, VERSION)
    if made_by == "an older aifx":
        older = {"name": "pets", "format": 7, "sha256": found.digest, **found.content}
        manifest.write_text(json.dumps(older))
        words = ["format 7", f"reads format {artifact.FORMAT}"]
    else:
        manifest.write_bytes(replace(found, version=9).encode())
        words = ["version 9", f"reads version {VERSION}"]
    with pytest.raises(DataError) as refused:
        catalog.open("pets")
    assert all(word in refused.value.why for word in words), refused.value.why
    (unreadable,) = list_versions(catalog).unreadable
    assert (unreadable.reference, unreadable.why, unreadable.hint) == (
        chain[1].reference,
        refused.value.why,
        refused.value.hint,
    )
    listed = inprocess.run(["data", "ls", "--root", catalog.store.url], tmp_path, {})
    assert listed.returncode == 0
    assert refused.value.why in listed.stderr
    assert chain[0].reference in listed.stdout


def test_a_copy_in_the_cache_is_compared_and_only_what_is_damaged_is_copied_again(
    catalog: Catalog, chain: list[Version], tmp_path: Path
) -> None:
    remote = open_catalog(f"memory://{tmp_path.name}")
    for version in chain:
        remote.publish(version)
    remote.set_latest("pets", chain[1].manifest.version)
    copy = remote.open("pets")
    assert copy.path == tmp_path / "cache" / "datasets" / chain[1].manifest.sha256
    assert not (copy.path / MANIFEST).exists(), "it has the rows alone"
    whole = copy.shards[0].read_bytes()
    copy.shards[0].write_bytes(whole[:-1] + b"x")
    kept = copy.shards[1].stat().st_ino
    assert remote.open("pets").shards[0].read_bytes() == whole
    assert copy.shards[1].stat().st_ino == kept
    remote.store.remove(f"pets/{chain[1].manifest.version}/shards")
    assert remote.open("pets").shards[0].read_bytes() == whole  # it is whole, so nothing of the store is read
    copy.shards[0].unlink()
    with pytest.raises(DataError, match="is damaged"):
        list(remote.open("pets").shards)


def test_a_manifest_may_be_longer_than_other_documents(
    catalog: Catalog, chain: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has each picture of a data set as a source."""
    monkeypatch.setattr(artifact, "DOCUMENT_LIMIT", 500)
    monkeypatch.setattr(files.read_file, "__kwdefaults__", {**files.read_file.__kwdefaults__, "limit": 500})
    made = execute(WithoutLetter((chain[0],), "x"), "pets", catalog, LIMITS).version
    remote = open_catalog(f"memory://{tmp_path.name}")
    remote.publish(made)
    copy = remote.open(made.manifest.whole_reference)
    copy.shards[0].write_bytes(b"")
    assert remote.open(made.manifest.whole_reference).shards[0].read_bytes() == made.shards[0].read_bytes()


def test_a_copy_that_breaks_off_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    """A process may read the file meanwhile."""

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("the other side is gone")

    store = open_store(str(tmp_path / "it"))
    store.write("shards/0", iter([b"whole"]))
    with open(tmp_path / "it/shards/0", "rb") as reader:
        with pytest.raises(Exception, match="the other side is gone"):
            store.write("shards/0", broken())
        store.write("shards/0", iter([b"new"]))
        assert reader.read() == b"whole"
    assert [path.name for path in (tmp_path / "it/shards").iterdir()] == ["0"]
    assert store.read("shards/0") == b"new"
