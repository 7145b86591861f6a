"""The token store: what it holds, that it is never stale, and that nothing leaves half a one behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_files import failing
from prose import prose

from aifx.commands.console.failures import as_error
from aifx.core.artifact import BLOCKS, MANIFEST, UNFINISHED, DamagedArtifact, damaged_files, read_artifact, unfinished
from aifx.core.code_digest import Code
from aifx.core.errors import DataError, EnvironmentFault, ExitCode
from aifx.core.files import remove_temporary
from aifx.core.project import Project, cache_path
from aifx.data import corpus as corpora
from aifx.data import row_cache
from aifx.data.corpus import Corpus, open_corpora, stored_tokens
from aifx.data.readers import documents, encodings
from aifx.data.row_cache import VERSION
from aifx.data.sections import TextSection
from aifx.data.splits import SPLITS, Split
from aifx.data.text import TextData
from aifx.data.tokenizer import Tokenizer, train_tokenizer

Write = Callable[..., Path]
Open = Callable[..., TextData]
SPLITS_OF_DATA: list[Split] = ["train", "validation", "test"]


def stores() -> list[Path]:
    return sorted((cache_path() / "tokens").iterdir())


def check(folder: Path) -> None:
    """Raise DamagedArtifact for a store that is not whole."""
    if damaged := damaged_files(folder, read_artifact(folder, "token store", VERSION)):
        raise DamagedArtifact(folder, damaged[0])


def text_of(data: TextData, split: Split) -> list[str]:
    """The documents of a split, decoded from the store."""
    tokens = data.store.splits[split]
    ends = [*tokens.documents[1:].tolist()]
    starts = tokens.documents[:-1].tolist()
    return [
        data.tokenizer.decode(tokens.tokens[start + 1 : end].tolist()) for start, end in zip(starts, ends, strict=True)
    ]


def test_it_holds_the_documents_between_ends(write: Write, open_: Open) -> None:
    texts = [prose(30, seed) for seed in range(100)]
    write("a.jsonl", "\n".join(json.dumps({"text": text}) for text in texts))
    data = open_(train=("data/*.jsonl",), split="document", validation_fraction=0.2, test_fraction=0.2)
    found: list[str] = []
    for split in SPLITS_OF_DATA:
        tokens, eos = data.store.splits[split], data.tokenizer.eos_id
        assert tokens.tokens[:].dtype == np.uint16
        assert tokens.closed
        assert np.flatnonzero(tokens.tokens[:] == eos).tolist() == tokens.documents[:].tolist()
        assert data.store.splits[split].num_targets == len(tokens.tokens) - 1
        assert data.store.splits[split].num_bytes == sum(len(text.encode()) for text in text_of(data, split))
        found += text_of(data, split)
    assert sorted(found) == sorted(texts)


def test_a_document_cut_by_a_split_is_not_closed(write: Write, open_: Open) -> None:
    text = prose(3000)
    write("a.txt", text)
    data = open_()
    assert [data.store.splits[split].closed for split in SPLITS_OF_DATA] == [False, False, True]
    assert "".join(text_of(data, split)[0] for split in SPLITS_OF_DATA) == text
    assert sum(data.store.splits[split].num_bytes for split in SPLITS_OF_DATA) == len(text.encode())


def test_pieces_and_batches_leave_no_trace(
    write: Write, open_: Open, monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    write("a.txt", prose(3000))
    write("b.txt", prose(100, 1))
    whole = open_(train=("data/a.txt", "data/b.txt"))
    kept = {split: whole.store.splits[split].tokens[:].tobytes() for split in SPLITS}
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(encodings, "BLOCK_BYTES", 70)
    monkeypatch.setattr(corpora, "BATCH_CHARACTERS", 90)
    again = stored_tokens(project.root / "again", whole.corpus, whole.tokenizer)
    assert {split: again.splits[split].tokens[:].tobytes() for split in SPLITS} == kept


def test_large_vocabularies_take_four_bytes(project: Project, write: Write) -> None:
    write("a.txt", prose(3000))
    description = json.loads(train_tokenizer([prose(3000)], 300))
    description["model"]["vocab"] |= {f"unused {index}": index for index in range(300, 70_000)}
    tokenizer = Tokenizer(json.dumps(description).encode(), "large")
    (corpus,) = open_corpora(TextSection(), project)
    built = stored_tokens(project.root / "store", corpus, tokenizer)
    assert built.splits["train"].tokens[:].dtype == np.uint32


def test_a_second_run_starts_at_once(write: Write, open_: Open, logged: list[str]) -> None:
    write("a.txt", prose(3000))
    first = open_("one")
    assert [line.rpartition(" ")[2] for line in logged] == ["data/a.txt"] * 2
    made = [path.stat().st_mtime_ns for path in stores()]
    assert open_("two").digest == first.digest
    assert open_("one").digest == first.digest
    assert len(logged) == 2
    assert [path.stat().st_mtime_ns for path in stores()] == made


def test_changed_text_is_never_read_stale(write: Write, open_: Open) -> None:
    text = prose(3000)
    path = write("a.txt", text)
    before, digests = path.stat(), {open_().digest}
    for change in (text.replace("a", "o"), text[:100] + "#" + text[101:], text + "."):
        path.write_text(change)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        data = open_()
        assert "".join(text_of(data, split)[0] for split in SPLITS_OF_DATA) == change
        digests.add(data.digest)
    assert len(digests) == 4


def test_what_the_digest_covers(write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    write("b.txt", prose(3000, 1))
    changes: list[dict[str, Any]] = [
        {},
        {"train": ("data/b.txt", "data/a.txt")},
        {"train": ("data/a.txt",)},
        {"train": ("data/a.txt",), "test": ("data/b.txt",)},
        {"split": "document", "validation_fraction": 0, "test_fraction": 0},
        {"test_fraction": 0.2},
        {"vocab_size": 400},
        {"seq_len": 20},
        {"packing": "documents"},
        {"eval_stride": 8},
    ]
    digests = [open_(f"assets-{number}", **keys).digest for number, keys in enumerate(changes)]
    assert len(set(digests)) == len(changes)


@pytest.mark.parametrize("name", [MANIFEST, "train.tokens.npy", f"train.tokens.npy{BLOCKS}", "test.documents.npy"])
def test_a_torn_store_is_built_again(name: str, write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    whole = text_of(open_(), "train")
    (folder,) = stores()
    os.truncate(folder / name, (folder / name).stat().st_size - 3)
    with pytest.raises(DamagedArtifact):
        check(folder)
    assert text_of(open_(), "train") == whole
    assert stores() == [folder]
    (folder / name).unlink()
    assert text_of(open_(), "train") == whole
    (folder / name).write_bytes(b"")
    assert text_of(open_(), "train") == whole
    assert stores() == [folder]


@pytest.mark.parametrize("how", ["cut", "swapped"])
def test_a_damaged_tokenizer_in_the_cache_is_trained_again(
    how: str, write: Write, open_: Open, logged: list[str]
) -> None:
    write("a.txt", prose(3000))
    first = open_("one").tokenizer.data
    (cached,) = (cache_path() / "tokenizers").iterdir()
    whole = cached.read_bytes()
    swapped = whole.replace(b'"a": ', b'"?": ').replace(b'"e": ', b'"a": ').replace(b'"?": ', b'"e": ')
    cached.write_bytes(swapped if how == "swapped" else whole[:100])
    assert open_("two").tokenizer.data == first
    assert cached.read_bytes() == whole
    assert any(text.startswith(f"warning: the cached tokenizer {cached} is damaged") for text in logged)


BUILD = (
    "import sys; from pathlib import Path; from aifx.data.sections import TextSection as Section\n"
    "from aifx.data.text import TextFormat; from aifx.core.project import Project\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "_, data = TextFormat.open(Section(), Project(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    "print(data.digest)"
)


def builder(project: Project, assets: Path) -> subprocess.Popen[str]:
    """A process that opens the project's text when it is told to."""
    command = [sys.executable, "-c", BUILD, str(project.root), str(assets)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_processes_may_build_the_same_store_at_once(
    project: Project, write: Write, open_: Open, tmp_path: Path
) -> None:
    write("a.txt", prose(20_000))
    processes = [builder(project, tmp_path / f"assets-{number}") for number in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert {output[-1] for output in outputs} == {open_(seq_len=256, vocab_size=1024).digest}
    assert len(stores()) == 1


@pytest.mark.slow
def test_a_builder_that_is_killed_leaves_no_half_store(
    project: Project, write: Write, open_: Open, tmp_path: Path
) -> None:
    write("a.txt", prose(150_000))
    for delay in (0.0, 0.05, 0.2):
        process = builder(project, tmp_path / "assets")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        began = any(line.startswith("tokenizing") for line in process.stdout)
        assert began or stores()  # the one before may have ended before it was killed
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in (cache_path() / "tokens").glob("*"):
            if UNFINISHED not in path.name:
                check(path)
    data = open_(vocab_size=1024)
    assert sum(data.store.splits[split].num_bytes for split in SPLITS_OF_DATA) == len(
        (project.root / "data/a.txt").read_bytes()
    )


def test_what_killed_builders_left_is_swept(write: Write, open_: Open) -> None:
    """Not what a builder writes that lives, however long it takes."""
    folder = cache_path() / "tokens"
    with unfinished(folder / "slow") as slow:
        (slow / "train.tokens.npy").write_bytes(b"half")
        os.utime(slow, (0, 0))
        killed = folder / f"killed{UNFINISHED}{'0' * 16}"
        killed.mkdir()
        (killed / "train.tokens.npy").write_bytes(b"half")
        write("a.txt", prose(3000))
        open_()
        assert (slow / "train.tokens.npy").exists()
        assert not killed.exists()
    assert not slow.exists()


def test_a_cache_that_cannot_be_written_is_named(write: Write, open_: Open) -> None:
    write("a.txt", prose(3000))
    cache_path().write_text("a file where a folder should be")
    with pytest.raises(EnvironmentFault, match="cannot be written") as caught:
        open_()
    assert str(cache_path()) in caught.value.what
    assert caught.value.hint.startswith("AIFX_CACHE_DIR=")


@pytest.mark.slow
def test_a_disk_that_refuses_while_a_store_is_written_is_named(
    project: Project, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each call once, from then on all: the path and the reason, no traceback of a buffered file, nothing left."""
    write("a.txt", prose(3000))
    (corpus,) = open_corpora(TextSection(), project)
    tokenizer = Tokenizer(train_tokenizer([prose(300)], 300), "test")
    folder = cache_path() / "tokens"
    with failing(folder) as counted:
        stored_tokens(folder / "whole", corpus, tokenizer)
    assert len(counted.made) > 20
    for at in range(len(counted.made)):
        name = f"refused-{at}"
        with failing(folder, at, lasting=True) as calls:
            try:
                built = stored_tokens(folder / name, corpus, tokenizer)
            except (OSError, EnvironmentFault) as caught:
                error = as_error(caught)
                assert error.exit_code == ExitCode.UNABLE, calls.failed
                assert str(folder) in error.what, calls.failed
                assert "Input/output error" in error.why, calls.failed
            else:
                assert len(built.splits) == 3
    gc.collect()
    assert capfd.readouterr().err == ""
    remove_temporary(folder)
    assert not list(folder.glob(".*")), "temporary files"


def test_text_that_changes_while_it_is_read_is_refused(project: Project, write: Write) -> None:
    path = write("a.txt", prose(3000))
    (corpus,) = open_corpora(TextSection(), project)
    tokenizer = Tokenizer(train_tokenizer([prose(300)], 300), "test")

    class Edited(Corpus):
        def pieces(self, *, whole: bool = False) -> Any:
            for number, item in enumerate(super().pieces(whole=whole)):
                if number == 0:
                    path.write_text(prose(3000, 1))
                yield item

    edited = Edited(corpus.files, corpus.section, corpus.fractions)
    with pytest.raises(DataError, match=r"data/a.txt changed"):
        stored_tokens(project.root / "store", edited, tokenizer)
    assert sorted(path.name for path in project.root.iterdir()) == ["data"]


def test_other_code_tokenizes_again_and_a_run_goes_on_with_the_same_tokens(
    write: Write, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes compares the tokens. Its tokenizer is its own."""
    write("a.txt", prose(3000))
    first = open_()
    assert open_().store.path == first.store.path
    monkeypatch.setattr(row_cache, "code_digest", lambda *_: Code("other", {}))
    again = open_()
    assert again.store.path != first.store.path
    assert (again.digest, again.store.digest) == (first.digest, first.store.digest)
    monkeypatch.setattr(row_cache, "code_digest", lambda *_: Code("wrong", {}))
    real = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts, **how: real(self, [t[1:] for t in texts], **how))
    assert open_().digest != first.digest
