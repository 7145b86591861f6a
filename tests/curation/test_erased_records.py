"""`aifx data erase` of records of servers: by text, by column and by id, and only with --purge."""

from __future__ import annotations

import json
import os
from pathlib import Path

import inprocess
import pytest
from published_schemas import check_answer

from aifx.data.tokenizer import Tokenizer, train_tokenizer
from aifx.serving.record import document_of, packed
from aifx.serving.records import RecordWriter, encoded, read_records
from aifx.serving.requests import GenerationRequest


def erase(folder: Path, name: str, where: str, *args: str, code: int = 0) -> str:
    ended = inprocess.run(["data", "erase", name, "--where", where, *args], folder, dict(os.environ))
    assert ended.returncode == code, ended.stderr
    return ended.stdout if code == 0 else ended.stderr


def states(folder: Path) -> list[str]:
    return [record.state for record in read_records(folder)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    writer = RecordWriter(tmp_path / "runs/main/records", 2000)
    for number in range(6):
        given = [{"customer": number}, {"customer": 10 + number}]
        request = encoded({"rows": given if number != 5 else [], "batch": {}})
        writer.append(f"id-{number}", 1e9 + number, "m" * 64, "fp", request, encoded({"outputs": {}}))
    writer.close()
    return tmp_path / "runs/main/records"


def test_rows_are_erased_by_column_and_pictures_by_id(rows: Path, tmp_path: Path) -> None:
    where = "input->>'customer' = '13' OR id = 'id-5'"
    found = json.loads(erase(tmp_path, "runs/main/records", where, "--json"))
    assert (found["rows"], len(found["records"]), found["dry_run"]) == (2, 2, True)
    assert set(states(rows)) == {"whole"}
    assert "requires --yes" in erase(tmp_path, "runs/main/records", where, "--purge", code=2)
    done = erase(tmp_path, "./runs", where, "--purge", "--yes", "--json")
    check_answer(["data", "erase", "--json"], done)
    assert states(rows) == ["whole", "whole", "whole", "erased", "whole", "erased"]
    assert "no record of" in erase(tmp_path, "runs/main/records", where, "--purge", "--yes")


def test_texts_are_erased_by_pattern(tmp_path: Path) -> None:
    tokenizer = Tokenizer(train_tokenizer([], 257), "tokenizer.json")
    writer = RecordWriter(tmp_path / "runs/main/records")
    for prompt, text in (("I am A. Smith", "hello"), ("who is there?", "A. Smith"), ("a", "b")):
        request = document_of(GenerationRequest(tokenizer.encode_prompt(prompt), 5))
        answer = {"finish_reason": "stop", "tokens": packed("i", tokenizer.encode_prompt(text))}
        writer.append("", 1e9, "m", "fp", encoded(request), encoded(answer))
    where = "regexp_matches(input || output, 'A[.] Smith')"
    assert "tokenizer.json" in erase(tmp_path, "runs/main/records", where, code=2)  # nothing would be found
    (tmp_path / "runs/main/assets").mkdir()
    (tmp_path / "runs/main/assets/tokenizer.json").write_bytes(tokenizer.data)
    erase(tmp_path, "runs/main/records", where, "--purge", "--yes")  # while the server writes
    writer.close()
    assert states(tmp_path) == ["erased", "erased", "whole"]


def test_what_cannot_be_searched_is_an_error_and_nothing_is_erased(rows: Path, tmp_path: Path) -> None:
    for where, why in (
        (" ", "--where is empty"),
        ("customer = 1", "customer"),
        ("true); DROP TABLE data; SELECT (1", "not one SELECT"),
        ("input IN (SELECT content FROM read_text('/etc/hostname'))", "cannot be run"),
    ):
        assert why in erase(tmp_path, "runs/main/records", where, "--purge", "--yes", code=2)
    assert "not a folder of records" in erase(tmp_path, "runs/other", "true", code=2)
    chain = min(rows.rglob("*.chain"))
    chain.write_bytes(chain.read_bytes().replace(b"id-1", b"id-2"))
    assert "000000.chain:2" in erase(tmp_path, "runs/main/records", "true", "--purge", "--yes", code=2)
    assert all(b"null" not in file.read_bytes() for file in rows.rglob("*.payload"))
