"""The index of a project's files: it spares reading them, and it is never stale."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from prose import prose

from aifx.core import file_states
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.file_states import FileState
from aifx.core.project import Project, cache_path
from aifx.data import file_index
from aifx.data.corpus import Corpus, open_corpora
from aifx.data.readers import documents
from aifx.data.readers.documents import find_files, scan_file
from aifx.data.row_cache import with_digest
from aifx.data.sections import TextSection

Write = Callable[..., Path]
TEXT = prose(300)
OTHER = TEXT.replace("a", "o")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled as soon as they are written."""
    monkeypatch.setattr(file_states, "SETTLED_NS", -(10**15))


@pytest.fixture
def digests(project: Project) -> Callable[..., list[str]]:
    def digests(pattern: str = "data/*") -> list[str]:
        """The scans that training finds in the project's files."""
        scans = file_index.scans_of(find_files((pattern,), project, "data.train"), "text", project)
        return [scan.digest for scan in scans.values()]

    return digests


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []

    def spy(file: file_index.SourceFile, text_field: str) -> file_index.FileScan:
        names.append(file.name)
        return scan_file(file, text_field)

    monkeypatch.setattr(file_index, "scan_file", spy)
    return names


def rewrite(path: Path, text: str) -> None:
    """Other text, with the time of the old one. Its ctime is another, as after two seconds."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def index() -> Path:
    (found,) = (path for path in (cache_path() / "files").iterdir() if path.is_file())
    return found


@pytest.mark.usefixtures("settled")
def test_only_what_changed_is_read_again(write: Write, digests: Callable[..., list[str]], read: list[str]) -> None:
    first, second = write("a.txt", TEXT), write("b.txt", TEXT + ".")
    write("c.txt", "")
    assert digests() == [sha256_of(TEXT), sha256_of(TEXT + "."), sha256_of("")]
    assert read == ["data/a.txt", "data/b.txt", "data/c.txt"]
    read.clear()
    assert digests("data/[ab].txt") == [sha256_of(TEXT), sha256_of(TEXT + ".")]
    assert read == []
    rewrite(first, OTHER)
    assert digests("data/[ab].txt") == [sha256_of(OTHER), sha256_of(TEXT + ".")]
    digests("data/[ab].txt")
    assert read == ["data/a.txt"]
    second.rename(first)
    assert digests("data/a.txt") == [sha256_of(TEXT + ".")]
    assert read == ["data/a.txt"] * 2


def test_a_file_that_just_changed_is_read_again(
    write: Write, digests: Callable[..., list[str]], read: list[str]
) -> None:
    """The next write may come in the same tick of the clock, and then has the same times."""
    write("a.txt", TEXT)
    assert digests() == digests() == [sha256_of(TEXT)]
    assert len(read) == 2


@pytest.mark.parametrize(("age_ns", "is_settled"), [(0, False), (1_999_999_999, False), (2_000_000_000, True)])
def test_the_age_from_which_times_tell(age_ns: int, is_settled: bool) -> None:
    seen = 10**18 + 1
    for times in ((seen - age_ns, 1), (0, seen - age_ns)):
        state = FileState(1, 2, *times, seen_ns=seen)
        assert state.is_still(FileState(1, 2, *times, seen_ns=seen + 10**12)) == is_settled
    assert not FileState(1, 2, seen + 1, 1, seen_ns=seen).is_settled, "a time to come"


def test_whole_seconds_tell_on_file_systems_that_count_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have them if somebody has set them, as in an image; only pictures are believed to be the same then."""
    path = tmp_path / "a.txt"
    path.touch()
    real = os.fstat
    whole = 10**18

    def fstat(handle: int) -> os.stat_result | SimpleNamespace:
        names = ("st_size", "st_ino", "st_dev")
        found = {name: getattr(real(handle), name) for name in names}
        return SimpleNamespace(**found, st_mtime_ns=whole, st_ctime_ns=whole)

    monkeypatch.setattr(os, "fstat", fstat)
    for name, is_settled in (("lustre", True), ("squashfs", False), ("fuse.s3fs", False), ("", False)):
        monkeypatch.setattr(file_states, "_file_system", lambda _, name=name: name)
        state = FileState.of(path)
        assert (state.is_settled, state.is_still(state, trusts_images=True)) == (is_settled, True), name


def test_the_type_of_a_file_system_is_known(tmp_path: Path) -> None:
    found = file_states._file_system(tmp_path.stat().st_dev)
    assert found in ("", *Path("/proc/filesystems").read_text().split()) or found.startswith(("fuse", "overlay"))
    assert file_states._file_system(Path("/proc").stat().st_dev) == "proc"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:9] + b"#" + data[10:]])
def test_a_damaged_index_is_made_again(
    damage: Callable[[bytes], bytes], write: Write, digests: Callable[..., list[str]], read: list[str]
) -> None:
    write("a.txt", TEXT)
    digests()
    whole = index().read_bytes()
    index().write_bytes(damage(whole))
    assert digests() == [sha256_of(TEXT)]
    assert len(read) == 2
    digests()
    assert len(read) == 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b'[["a"]]', b"[1]", b'{"a": 1}', b"{", b'[{"012345678": 1}]', b"null"])
def test_an_index_with_other_content_is_made_again(
    content: bytes, write: Write, digests: Callable[..., list[str]], read: list[str]
) -> None:
    write("a.txt", TEXT)
    digests()
    index().write_bytes(with_digest(content))
    (index().parent / "folder").mkdir()
    file_index.prune_indexes(dry_run=True)
    (index().parent / "folder").rmdir()
    assert digests() == digests() == [sha256_of(TEXT)]
    assert len(read) == 2
    (index().parent / "folder").mkdir()
    file_index.prune_indexes(dry_run=False)
    assert (index().parent / "folder").is_dir()


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written(write: Write, digests: Callable[..., list[str]], read: list[str]) -> None:
    write("a.txt", TEXT)
    cache_path().mkdir(parents=True)
    cache_path("files").write_bytes(b"in the way, also of the superuser")
    assert digests() == digests() == [sha256_of(TEXT)]
    assert len(read) == 2


@pytest.mark.usefixtures("settled")
def test_links_are_followed_to_what_they_name_now(
    project: Project, write: Write, digests: Callable[..., list[str]]
) -> None:
    first, second = project.root / "first.txt", project.root / "second.txt"
    first.write_text(TEXT)
    second.write_text(OTHER)
    os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    link = project.root / "data/a.txt"
    link.symlink_to(first)
    (project.root / "data/b.txt").symlink_to(first)
    assert digests() == [sha256_of(TEXT)], "two names of one file"
    link.unlink()
    link.symlink_to(second)
    assert digests() == [sha256_of(OTHER), sha256_of(TEXT)]
    rewrite(second, TEXT)
    assert digests("data/a.txt") == [sha256_of(TEXT)]
    os.link(second, project.root / "data/c.txt")
    assert len(digests()) == 3, "another name of the same inode is a file of its own"


@pytest.mark.usefixtures("settled")
def test_runs_at_the_same_time(project: Project, write: Write) -> None:
    texts = {f"{number}.txt": TEXT[: 100 + number] for number in range(20)}
    for name, text in texts.items():
        write(name, text)

    def digests(number: int) -> list[str]:
        files = find_files((f"data/*{number % 10}.txt",), project, "data.train")
        return [scan.digest for scan in file_index.scans_of(files, "text", project).values()]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(digests, range(40)))
    for number, got in enumerate(found):
        assert got == [sha256_of(texts[name]) for name in sorted(texts) if name.endswith(f"{number % 10}.txt")]


@pytest.mark.usefixtures("settled")
def test_an_edit_between_the_index_and_the_tokens_is_refused(project: Project, write: Write) -> None:
    write("a.txt", TEXT + ".")
    path = write("b.txt", TEXT)
    opened = open_corpora(TextSection(), project)[0]
    opened.check_unchanged()
    os.utime(path)
    opened.check_unchanged()
    rewrite(path, OTHER)
    with pytest.raises(DataError, match=r"^data/b.txt changed"):
        opened.check_unchanged()


@pytest.mark.usefixtures("settled")
def test_ways_of_reading_are_kept_apart(project: Project, write: Write) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bad = arrow.array([b"caf\xe9"], arrow.binary()).view(arrow.string())
    parquet.write_table(arrow.table({"text": ["one"], "other": bad}), write("a.parquet", b""))
    files = find_files(("data/*",), project, "data.train")
    for field, num_bad in [("text", 0), ("other", 1)] * 2:
        (scan,) = file_index.scans_of(files, field, project).values()
        assert (scan.num_bad, scan.where) == (num_bad, ": row 1 of column 'other'" if num_bad else "")
        assert scan == scan_file(files[0], field)


def test_text_without_bad_bytes_is_divided_in_one_reading(
    project: Project, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is known from the index."""
    started: list[str] = []
    read_documents = documents.read_documents

    def spy(file: file_index.SourceFile, *args: object, **how: object) -> object:
        started.append(file.name)
        return read_documents(file, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(documents, "read_documents", spy)
    write("a.txt", b"\xef\xbb\xbf" + prose(2000).encode())
    write("b.txt", "é" * 500)

    def shares(opened: Corpus) -> dict[str, int]:
        found: dict[str, int] = {}
        for split, piece in opened.pieces():
            found[split] = found.get(split, 0) + piece.num_bytes
        return found

    total = len(prose(2000).encode()) + 1000
    assert shares(open_corpora(TextSection(), project)[0])["train"] == pytest.approx(0.85 * total, abs=2)
    assert started == ["data/a.txt", "data/b.txt"]
    write("b.txt", b"\xff" * 500)
    started.clear()
    assert sum(shares(open_corpora(TextSection(errors="replace"), project)[0]).values()) == total - 1000 + 1500
    assert started == ["data/a.txt", "data/b.txt"] * 2


@pytest.mark.usefixtures("settled")
def test_entries_of_files_that_are_gone_are_pruned(
    write: Write, digests: Callable[..., list[str]], read: list[str]
) -> None:
    for name in ("a.txt", "b.txt"):
        write(name, TEXT)
    digests()
    assert file_index.prune_indexes(dry_run=False) == []
    gone = write("a.txt", TEXT)
    gone.unlink()
    size = index().stat().st_size
    ((path, smaller),) = file_index.prune_indexes(dry_run=True)
    assert (path, path.stat().st_size) == (index(), size)
    assert file_index.prune_indexes(dry_run=False) == [(path, smaller)]
    assert size - path.stat().st_size == smaller
    read.clear()
    assert digests() == [sha256_of(TEXT)]
    assert read == []
    write("b.txt", "").unlink()
    file_index.prune_indexes(dry_run=False)
    assert not path.exists(), "an index of no file"


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
def test_a_folder_of_many_small_files(project: Project, write: Write, read: list[str]) -> None:
    for number in range(20_000):
        write(f"{number // 1000}/{number:05}.txt", TEXT[: 50 + number % 100])
    section = TextSection(train=("data/**/*.txt",))
    opened = open_corpora(section, project)[0]
    assert len(opened.files["train"]) == len(set(read)) == len(read) == 20_000
    rewrite(project.root / "data/7/07001.txt", OTHER)
    assert open_corpora(section, project)[0].digest != opened.digest
    assert read[20_000:] == ["data/7/07001.txt"]
    with pytest.raises(DataError, match="changed"):
        opened.check_unchanged()
