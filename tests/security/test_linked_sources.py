"""Links in folders that others made: `aifx data add` reads no file of this machine that the folder does not have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import inprocess
import pytest

from aifx.core.errors import DataError
from aifx.data.picture_lists import list_pictures
from aifx.data.readers.sources import Listing, list_sources
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.shards import read_shard

SECRET = "root:x:0:0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a stranger, with links that stay in it and links that lead out."""
    (outside := tmp_path / "home").mkdir()
    (outside / "passwd.txt").write_text(SECRET)
    (folder := tmp_path / "given").mkdir()
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text("a text")
    (folder / "inside.txt").symlink_to("deep/a.txt")
    (folder / "deep" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "out.txt").symlink_to("../home/passwd.txt")
    (folder / "twice.txt").symlink_to("out.txt")
    (folder / "home").symlink_to(outside, target_is_directory=True)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "given2").mkdir()
    (tmp_path / "given2" / "b.txt").write_text("of a folder whose name begins alike")
    (folder / "beside").symlink_to("../given2", target_is_directory=True)
    return folder


LINKS = ("beside", "gone.txt", "home", "out.txt", "twice.txt")


def names(listing: Listing) -> list[str]:
    return [file.name for file in listing.files]


def add(folder: Path, *args: str) -> Any:
    command = ["data", "add", "corpus", "given", "--license", "unknown", "--root", "datasets", *args]
    return inprocess.run(command, folder.parent, {"HOME": str(folder.parent), "PATH": "/usr/bin:/bin"})


def test_a_folder_is_not_left_through_links(folder: Path) -> None:
    for argument in (folder, folder / "**" / "*", folder / "*"):
        listing = list_sources([str(argument)], folder)
        assert {os.path.realpath(file.location) for file in listing.files} == {str(folder / "deep" / "a.txt")}
        assert names(listing) == ["deep/a.txt", "inside.txt"]
        assert set(LINKS) <= set(listing.links)
    listing = list_sources([folder.as_uri()], folder)
    assert {os.path.realpath(file.location.removeprefix("file://")) for file in listing.files} == {
        str(folder / "deep" / "a.txt")
    }


def test_a_link_that_is_given_is_read(folder: Path) -> None:
    (given := folder.parent / "link").symlink_to(folder, target_is_directory=True)
    listing = list_sources([str(given)], folder.parent)
    assert (names(listing), len(listing.links)) == (["link/deep/a.txt", "link/inside.txt"], len(LINKS))
    (folder.parent / "link.txt").symlink_to("home/passwd.txt")
    assert names(list_sources([str(folder.parent / "link.txt")], folder.parent)) == ["link.txt"]
    assert names(list_sources([str(folder / "twice.txt")], folder)) == ["twice.txt"]
    assert names(list_sources([str(folder / "home")], folder)) == ["home/passwd.txt"]


def test_loops_of_links_end(folder: Path) -> None:
    (folder / "gone.txt").unlink()
    followed = names(list_sources([str(folder)], folder, follow_links=True))
    assert followed == ["beside/b.txt", "deep/a.txt", "home/passwd.txt", "inside.txt", "out.txt", "twice.txt"]
    (folder / "one.txt").symlink_to("two.txt")
    (folder / "two.txt").symlink_to("one.txt")
    for follow_links in (False, True):
        with pytest.raises(DataError, match=r"one\.txt cannot be read"):
            list_sources([str(folder)], folder, follow_links=follow_links)


def test_the_command_lists_what_it_leaves_out(folder: Path) -> None:
    dry = json.loads(add(folder, "--dry-run", "--json").stdout)
    assert dry["links"] == [f"given/{name}" for name in LINKS]
    done = add(folder, "--json")
    assert json.loads(done.stdout)["links"] == dry["links"]
    assert all(f"given/{name}" in done.stderr for name in LINKS)
    assert "--follow-links" in done.stderr
    version = open_catalog(str(folder.parent / "datasets")).open("corpus")
    assert read_shard(version.shards[0])["text"].to_pylist() == ["a text", "a text"]
    (folder / "gone.txt").unlink()
    assert json.loads(add(folder, "--follow-links", "--json").stdout)["links"] == []
    version = open_catalog(str(folder.parent / "datasets")).open("corpus")
    assert SECRET in [text for path in version.shards for text in read_shard(path)["text"].to_pylist()]


def test_nothing_but_links(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a.txt").symlink_to("/etc/passwd")
    refused = add(tmp_path / "given")
    assert (refused.returncode, "--follow-links" in refused.stderr) == (2, True)


def test_training_on_ones_own_folder_follows_links(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "disk" / name / "1.png").write_bytes(b"")
        (tmp_path / "pictures" / name).symlink_to(tmp_path / "disk" / name, target_is_directory=True)
    assert len(list_pictures(tmp_path / "pictures", "pictures").examples) == 2
