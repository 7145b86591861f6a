"""`aifx score` of files and versions into folders: each row once, with the request in the same file."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inprocess
import pyarrow as pa
import pytest
from pyarrow import parquet
from score_rows import write_rows

from aifx.core.files import FolderBusy
from aifx.data.readers.rows import Row
from aifx.feedback.scoring.file_target import Folder
from aifx.feedback.scoring.predictions import keyed, prediction_batch


def score(project: Path, *args: str, code: int = 0) -> Any:
    """The document of a call; what it printed if it failed."""
    done = inprocess.run(["score", "main", *args, "--json"], project, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout) if code == 0 else json.loads(done.stdout)["error"]


def predictions(project: Path, name: str = "scores") -> list[dict[str, Any]]:
    return [row for part in sorted((project / name).glob("*.parquet")) for row in parquet.read_table(part).to_pylist()]


def test_rows_are_scored_once_and_agree_with_predict(project: Path) -> None:
    first = score(project, "new.jsonl", "scores", "--key", "order")
    assert (first["rows"], first["scored"], first["known"]) == (40, 40, 0)
    again = score(project, "new.jsonl", "scores", "--key", "order")
    assert (again["rows"], again["scored"], again["known"]) == (40, 0, 40)
    assert len(list((project / "scores").glob("*.parquet"))) == 1
    write_rows(project, range(20, 60))  # half of them are new
    assert score(project, "new.jsonl", "scores", "--key", "order")["scored"] == 20
    found = predictions(project)
    assert [row["key"] for row in found] == [f"o{n}" for n in range(60)]
    assert len({row["prediction_id"] for row in found}) == 60
    assert {row["model"] for row in found} == {first["digest"]}
    write_rows(project, range(60))
    assert inprocess.run(["predict", "new.jsonl", "-o", "p.jsonl"], project, os.environ).returncode == 0
    expected = [json.loads(line) for line in (project / "p.jsonl").read_text().splitlines()]
    for row, other in zip(found, expected, strict=True):
        assert row["label"] == other["prediction"]
        assert row["probability"] == pytest.approx(other["prediction.probability"], abs=1e-6)
        assert json.loads(row["probabilities"]).keys() == {"up", "down"}


def test_files_are_in_the_order_of_their_numbers(project: Path) -> None:
    """Also where names are not: the next file replaces none, and the position is that of the last one."""
    write_rows(project, range(5))
    score(project, "new.jsonl", "scores", "--key", "order")
    (project / "scores" / "00001.parquet").rename(project / "scores" / "99999.parquet")
    for rows in (8, 9):
        write_rows(project, range(rows))
        score(project, "new.jsonl", "scores", "--key", "order")
    assert {path.name for path in (project / "scores").glob("*.parquet")} == {
        "99999.parquet",
        "100000.parquet",
        "100001.parquet",
    }
    assert len(predictions(project)) == 9


def test_positions_without_rows_add_no_file(tmp_path: Path) -> None:
    rows = [keyed(Row("", n, "", {"id": n}), "id", "m") for n in range(2)]
    for number, row in enumerate(rows):
        batch = prediction_batch([(row, {"value": 0.5})], "m", None, datetime.now(UTC))
        for position, batches in ((2 * number, [batch]), (2 * number + 1, [])):
            with Folder(tmp_path).open() as folder:
                for one in batches:
                    folder.add(one, "orders", None, None, "m")
                folder.finish("orders", position, None, {})
            with Folder(tmp_path).open() as folder:
                assert (folder.position("orders"), folder.position("other")) == (position, None)
        assert len(list(tmp_path.glob("*.parquet"))) == number + 1


def test_a_file_that_another_program_writes_meanwhile_stays(tmp_path: Path) -> None:
    batch = prediction_batch(
        [(keyed(Row("", 1, "", {"id": 1}), "id", "m"), {"value": 0.5})], "m", None, datetime.now(UTC)
    )

    def add() -> None:
        with Folder(tmp_path).open() as folder:
            folder.add(batch, "orders", None, None, "m")
            (tmp_path / "00001.parquet").write_text("other")
            folder.finish("orders", None, None, {})

    with pytest.raises(FolderBusy):
        add()
    assert (tmp_path / "00001.parquet").read_text() == "other"


def test_a_changed_row_has_a_prediction_of_its_own(project: Path) -> None:
    score(project, "new.jsonl", "scores", "--key", "order")
    text = (project / "new.jsonl").read_text().replace('"order": "o7", "x": -3.0', '"order": "o7", "x": 2.5')
    (project / "new.jsonl").write_text(text)
    assert score(project, "new.jsonl", "scores", "--key", "order")["scored"] == 1
    assert [row["key"] for row in predictions(project)].count("o7") == 2


def test_a_request_is_done_once(project: Path) -> None:
    command = ("new.jsonl", "scores", "--key", "order", "--request", "tick-1.score")
    first = score(project, *command)
    assert {row["request"] for row in predictions(project)} == {"tick-1.score"}
    write_rows(project, range(50))
    assert score(project, *command) == first | {"is_repeated": True}
    assert len(predictions(project)) == 40
    refused = score(project, "new.jsonl", "scores", "--key", "x", "--request", "tick-1.score", code=2)
    assert refused["what"] == "--request tick-1.score belongs to another act"
    for model, options in (("main:last", []), ("main", ["--set", "eval.batch_size=8"])):
        assert inprocess.run(["score", model, *command, *options], project, os.environ).returncode == 2
    # A request without a new row is kept, too.
    empty = score(project, "new.jsonl", "scores", "--key", "order", "--request", "tick-2.score")
    write_rows(project, range(70))
    assert score(project, *command[:-1], "tick-2.score") == empty | {"is_repeated": True}


def test_half_of_a_surrogate_pair_has_an_id() -> None:
    """JSON may have it."""
    rows = [keyed(Row("", 1, "", {"id": 1, "note": note}), "id", "m") for note in ("\ud83d", "\ud83e")]
    assert rows[0].id != rows[1].id


def test_a_version_has_a_key_of_its_own(project: Path) -> None:
    for folder in ("new", "orders"):  # the data set is meant, not the folder with its name
        (project / folder).mkdir()
    assert score(project, "new", "scores", "--key", "order", code=2)["what"] == "new is a folder"
    for day, numbers in enumerate((range(30), range(30, 40))):
        write_rows(project, numbers, f"new/{day}.jsonl")
        command = ["data", "add", "orders", "new", "--kind", "table", "--license", "MIT"]
        done = inprocess.run(command, project, os.environ)
        assert done.returncode == 0, done.stderr
        found = score(project, "orders", "scores")
    assert (found["scored"], found["known"]) == (10, 30)
    from aifx.data.versions.catalog import open_catalog

    version = open_catalog(str(project / "datasets")).open("orders")
    ids = [id for shard in version.shards for id in parquet.read_table(shard).column("_row").to_pylist()]
    assert sorted(row["key"] for row in predictions(project)) == sorted(ids)


@pytest.mark.parametrize(
    ("rows", "args", "named"),
    [
        ([{"order": 1, "x": 1.0}], ["--key", "order"], ["'y'"]),
        ([{"x": 1.0, "y": 1.0}], ["--key", "order"], ["'order'"]),
        ([{"order": 1, "x": 1.0, "y": 1.0}], [], ["--key"]),
        (
            [{"order": f"secret{n % 5}", "x": 1.0, "y": 1.0} for n in range(6)],
            ["--key", "order"],
            ["bad.jsonl:1", "bad.jsonl:6"],
        ),
        ([{"order": 1, "x": 1, "y": 1}, {"order": None, "x": 1, "y": 1}], ["--key", "order"], ["bad.jsonl:2"]),
        (
            [{"order": 1, "x": 1, "y": 1}, {"order": "a\ud800", "x": 1, "y": 1}],
            ["--key", "order"],
            ["bad.jsonl:2", "d800"],
        ),
        (
            [{"order": 1, "x": 1, "y": 1}, {"order": "a\0b", "x": 1, "y": 1}],
            ["--key", "order"],
            ["bad.jsonl:2", "NUL at character 2"],
        ),
        ([{"order": 1, "x": 1, "y": 1}], ["--key", "order", "--since-last"], ["--since-last", "as a whole"]),
        ([{"order": 1, "x": 1, "y": 1}, {"order": 2, "x": "a", "y": 1}], ["--key", "order"], ["bad.jsonl:2", "'x'"]),
    ],
)
def test_rows_that_cannot_be_scored(
    project: Path, rows: list[dict[str, Any]], args: list[str], named: list[str]
) -> None:
    (project / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = score(project, "bad.jsonl", "scores", *args, code=2)
    for name in named:
        assert name in error["what"] + error["why"], error
    assert error["hint"]
    assert "secret" not in str(error)
    assert predictions(project) == []


def test_targets_that_cannot_be_written(project: Path) -> None:
    (project / "taken").write_text("")
    for target, named in (("taken", "taken is"), ("taken/in/it", "taken is"), ("scores.csv", "the name of a file")):
        assert named in score(project, "new.jsonl", target, "--key", "order", code=2)["what"]
    assert not (project / "scores.csv").exists()
    (project / "other").mkdir()
    (project / "other" / "00001.parquet").write_bytes(b"x")
    assert "00001.parquet" in score(project, "new.jsonl", "other", "--key", "order", code=2)["what"]
    without_id = pa.table({"prediction_id": pa.array([None], pa.string())})
    parquet.write_table(without_id.replace_schema_metadata({"aifx.score": "{}"}), project / "other" / "00001.parquet")
    assert "00001.parquet" in score(project, "new.jsonl", "other", "--key", "order", code=2)["what"]
