"""Which files a project names, the documents in them, and what is said about those that cannot be read."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from prose import prose
from tokenizers import models, pre_tokenizers

from aifx.core.errors import AifxError, DataError
from aifx.core.project import Project
from aifx.data.readers import encodings
from aifx.data.readers.documents import PIECE_CHARACTERS, find_cut, find_files, read_documents
from aifx.data.readers.sources import local_file
from aifx.data.text import TextData
from aifx.data.tokenizer import WORDS, Tokenizer, train_tokenizer

Write = Callable[..., Path]
TEXT = prose(400)
LINE = json.dumps({"text": TEXT}).encode() + b"\n"


def documents(path: Path, field: str = "text") -> list[str]:
    """The documents of a file, put together again."""
    found, parts = [], []
    for piece in read_documents(local_file(path, path.name), field):
        parts.append(piece.text)
        if piece.closes:
            found.append("".join(parts))
            parts = []
    assert not parts, "the last document is not closed"
    return found


def test_files_are_sorted_and_taken_once(project: Project, write: Write) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.jsonl"):
        write(name, "text")
    found = find_files(("data/b.txt", "data/*.txt", "data/**/*.txt"), project, "data.train")
    assert [file.name for file in found] == ["data/b.txt", "data/a.txt", "data/deep/c.txt"]
    absolute = find_files((str(project.root / "data" / "*.txt"),), project, "data.train")
    assert [file.path for file in absolute] == [project.root / "data/a.txt", project.root / "data/b.txt"]


def test_a_record_is_a_document(write: Write) -> None:
    lines = [{"text": "one"}, {"text": ""}, {"text": "two\n", "more": 1}]
    assert documents(write("a.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")) == ["one", "two\n"]
    assert documents(write("b.jsonl", b'{"body": "x\xc3\xa9"}\r\n'), "body") == ["xé"]
    assert documents(write("c.txt", b"one\r\ntwo\xef\xbb\xbf")) == ["one\r\ntwo\ufeff"]


def test_parquet_rows_are_documents(write: Write, open_: Callable[..., TextData]) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write("a.parquet", b"")
    parquet.write_table(arrow.table({"text": ["one", "", "two"], "n": [1, 2, 3]}), path)
    assert documents(path) == ["one", "two"]
    for table, said in (
        ({"texts": ["a"]}, "no column 'text'"),
        ({"text": [1, 2]}, "row 1 of column 'text' is not text"),
        ({"text": ["a", None]}, "row 2 of column 'text' is not text"),
    ):
        parquet.write_table(arrow.table(table), path)
        with pytest.raises(DataError, match=f"a.parquet: {said}"):
            open_(train=("data/*.parquet",))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"data/a.parquet: .*Parquet"):
        open_(train=("data/*.parquet",))


BAD: list[tuple[str, bytes, str, str]] = [
    ("empty.txt", b"", "data/empty.txt is empty", ""),
    ("empty.jsonl", b"", "data/empty.jsonl is empty", ""),
    ("latin.txt", TEXT.encode() + b"\ncaf\xe9 au lait", f"data/latin.txt:{TEXT.count(chr(10)) + 2}: not UTF-8", "0xe9"),
    ("cut.txt", TEXT.encode() + b"\xe2\x80", "data/cut.txt:", f"byte {len(TEXT.encode())} is 0xe2 (unexpected end"),
    ("utf16.txt", TEXT.encode("utf-16"), "data/utf16.txt:1: not UTF-8", "byte 0 is 0xff"),
    ("zip.txt", b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x9b\x9c" * 99, "data/zip.txt:1: not UTF-8", "byte 10 is 0x9b"),
    ("broken.jsonl", LINE * 3 + b'{"text": "half', "data/broken.jsonl:4: not JSON", "Unterminated string"),
    ("plain.jsonl", b"Call me Ishmael.\n", "data/plain.jsonl:1: not JSON", "Expecting value"),
    ("list.jsonl", b'["text"]\n', "data/list.jsonl:1: not a JSON object", "list"),
    ("field.jsonl", LINE + b'{"texts": "x"}\n', "data/field.jsonl:2: no field 'text'", "'texts'"),
    ("number.jsonl", b'{"text": 3}\n', "data/number.jsonl:1: field 'text' is not text", "int"),
    ("null.jsonl", b'{"text": null}\n', "data/null.jsonl:1: field 'text' is not text", "NoneType"),
    ("latin.jsonl", LINE + b'{"text": "caf\xe9"}\n', "data/latin.jsonl:2: not UTF-8", f"byte {len(LINE) + 13} is 0xe9"),
    ("half.jsonl", b'{"text": "\\ud83d"}\n', "data/half.jsonl:1: field 'text' is not Unicode", "surrogate"),
    ("deep.jsonl", b'{"text": ' + b"[" * 100_000, "data/deep.jsonl:1: not JSON", ""),
    ("blank.jsonl", b"\n\n\n", "data/blank.jsonl: the train split is shorter", "0 tokens"),
    ("hollow.jsonl", b'{"text": ""}\n' * 9, "data/hollow.jsonl: the train split is shorter", "0 tokens"),
    ("short.txt", b"Call me", "data/short.txt: the train split is shorter", "data.seq_len is 16"),
    ("picture.png", b"\x89PNG", "data/picture.png: no reader for .png", ".txt, .md, .jsonl, "),
    ("README", b"text", "data/README: no reader for a file without suffix", ""),
]


@pytest.mark.parametrize(("name", "content", "what", "why"), BAD, ids=[case[0] for case in BAD])
def test_bad_data_is_named(
    name: str, content: bytes, what: str, why: str, write: Write, open_: Callable[..., TextData]
) -> None:
    write(name, content)
    with pytest.raises(DataError) as caught:
        open_(train=(f"data/{name}",))
    assert caught.value.what.startswith(what)
    assert why in caught.value.why


def test_files_that_are_not_there(project: Project, write: Write, open_: Callable[..., TextData]) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": ("data/*.txt",)}, "no file matches 'data/*.txt' of data.train"),
        ({"train": ("book.txt",)}, "no file 'book.txt', which data.train names"),
        ({"train": ("data",)}, "data is a directory"),
        ({"train": ("dat*",)}, "'dat*' of data.train matches directories only"),
    ]
    for keys, what in cases:
        with pytest.raises(DataError) as caught:
            open_(**keys)
        assert caught.value.what == what
        assert caught.value.hint
    write("a.txt", prose(2000))
    for split in ("validation", "test"):
        with pytest.raises(DataError, match=rf"'data/x\*.txt' of data.{split}"):
            open_(**{split: ("data/x*.txt",)})
    (project.root / "data/gone.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"data/gone.txt cannot be read"):
        open_()


def test_a_pipe_is_refused_and_not_waited_for(project: Project, open_: Callable[..., TextData]) -> None:
    os.mkfifo(project.root / "data/pipe.txt")
    with pytest.raises(DataError, match=r"data/pipe.txt "):
        open_()


def test_an_unreadable_file_is_named(project: Project, write: Write) -> None:
    """As another user, since the superuser may read everything."""
    path = write("secret.txt", "text")
    path.chmod(0)
    script = (
        "import os; from pathlib import Path; from aifx.data.readers.documents import *\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: scan_file(local_file(Path('secret.txt'), 'data/secret.txt'), 'text')\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=path.parent, capture_output=True, text=True)
    assert "data/secret.txt" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


def not_utf8(data: bytes) -> int | None:
    """Where `data` stops being UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)), st.integers(1, 7))
def test_decoding_in_blocks_is_decoding(tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(data)
    usual, encodings.BLOCK_BYTES = encodings.BLOCK_BYTES, block
    try:
        if (wrong := not_utf8(data)) is None:
            text = "".join(piece.text for piece in read_documents(local_file(path, "a.txt"), "text"))
            assert text.encode() == data.removeprefix(codecs.BOM_UTF8)
            return
        with pytest.raises(DataError) as caught:
            list(read_documents(local_file(path, "a.txt"), "text"))
        assert caught.value.what == f"a.txt:{data[:wrong].count(10) + 1}: not UTF-8"
        assert caught.value.why.startswith(f"byte {wrong} is 0x{data[wrong]:02x}")
    finally:
        encodings.BLOCK_BYTES = usual


def byte_level(pre_tokenizer: Any) -> Tokenizer:
    """A tokenizer that divides text in another way than ours."""
    ours = json.loads(train_tokenizer([TEXT], 400))
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizer
    ours["pre_tokenizer"] = json.loads(other.to_str())["pre_tokenizer"]
    return Tokenizer(json.dumps(ours).encode(), "test")


OURS = Tokenizer(train_tokenizer([TEXT], 400), "test")
GPT2 = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
# o200k_base of tiktoken: GPT-4o.
GPT4O = byte_level(
    pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
)
MARKS = st.one_of(
    st.text(st.sampled_from("aBé字ж'’.,-1²3 \n\r\t\u3000\u0301"), max_size=60),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
    st.lists(st.sampled_from([*WORDS, *" \n \n ", "the", "don't", "!\n", "\n\n  ", "end ", "'s"])).map("".join),
)


@pytest.mark.parametrize("tokenizer", [OURS, GPT2, GPT4O], ids=["ours", "gpt2", "gpt4o"])
@given(text=MARKS)
def test_cut_text_has_the_tokens_of_the_whole(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.can_cut
    cut = find_cut(text)
    assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:]) == tokenizer.encode(text)


def test_long_documents_come_in_pieces(write: Write) -> None:
    text = prose(60_000)
    pieces = list(read_documents(local_file(write("long.txt", text), "long.txt"), "text"))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.closes for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 5
    assert max(len(piece.text) for piece in pieces) <= 2 * PIECE_CHARACTERS
    assert [token for piece in pieces for token in OURS.encode(piece.text)] == OURS.encode(text)


def test_text_without_a_place_to_cut_is_one_piece(write: Write) -> None:
    text = "字" * 200_000
    pieces = list(read_documents(local_file(write("long.txt", text), "long.txt"), "text"))
    assert [piece.text for piece in pieces] == [text]


def test_every_failure_has_a_way_out(write: Write, open_: Callable[..., TextData]) -> None:
    for name, content, *_ in BAD:
        write(name, content)
        with pytest.raises(AifxError) as caught:
            open_(train=(f"data/{name}",))
        if "is not Unicode" not in caught.value.what:
            assert caught.value.hint, name
