"""Chats in data sets: rows are lines of JSON, which training parses and whose texts the steps reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow as pa
import pytest
from adding import LIMITS, add, environ_of, quarantine_of, rows_of
from pyarrow import parquet

from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.curation.add_plan import infer_kind
from aifx.curation.cleaning import check_text
from aifx.curation.dataset_report import dataset_page, read_report
from aifx.curation.duplicates import Dedupe, Split, find_clusters
from aifx.curation.execution import execute
from aifx.curation.labels.agreement import ApplyLabels
from aifx.curation.labels.rows import least_certain, queued_rows, view_of
from aifx.curation.mix import mix_of, parse_sets
from aifx.curation.pii.finders import Detector
from aifx.curation.pii.reports import search
from aifx.curation.pii.steps import FindPii, RemovePii
from aifx.curation.query import selected_rows
from aifx.curation.row_history import explain_row
from aifx.data.chat.format import ChatFormat, PreferenceFormat
from aifx.data.chat.section import ChatSection, PreferenceSection
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.sources import list_sources
from aifx.data.splits import SPLITS
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

TEMPLATE = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or m.tool_calls | tojson }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chat(*contents: Any) -> dict[str, Any]:
    """A conversation of these contents in turn; a dict is the arguments of a tool call."""
    return {
        "messages": [
            {"role": ("user", "assistant")[number % 2], "content": content}
            if isinstance(content, str)
            else {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": content}}]}
            for number, content in enumerate(contents)
        ]
    }


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def add_chats(folder: Path, *rows: Any, name: str = "chats") -> Version:
    write(folder / f"{name}.jsonl", *rows)
    return add(folder, name, f"{name}.jsonl", kind="chat").version


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    return Project(tmp_path)


def training(project: Project, **keys: Any) -> tuple[str, list[str]]:
    """The text of all conversations, and the split of each."""
    section = ChatSection(
        seq_len=4096, tokenizer="byte", chat_template="template.jinja", validation_fraction=0, test_fraction=0, **keys
    )
    _, data = ChatFormat.open(section, project, project.root / f"assets-{len(list(project.root.iterdir()))}")
    tokens = next(rows.tokens for rows in data.splits["train"])
    return data.tokenizer.decode(tokens.ids[:].tolist()), [SPLITS[index] for index in tokens.splits]


def test_a_line_stays_as_it_is(tmp_path: Path) -> None:
    odd = '{"messages" : [{"role": "user","content": "h\\u00e9"}],  "id": 1e2}'
    rows = [odd, "", "[1]", '{"messages": [{"role": "robot", "content": "x"}]}', chat("a", "b"), '{"x": 1, "x": 2}',
            '{"prompt": "\\ud800", "completion": "a"}', {"_row": "r", "chat": "{}"}]  # fmt: skip
    version = add_chats(tmp_path, *rows)
    assert version.manifest.kind == "chat"
    assert version.manifest.columns == {"_row": "string", "_source": "string", "chat": "string"}
    first, last = rows_of(version)
    assert [first["chat"], json.loads(last["chat"])] == [odd, rows[4]]
    assert [row["_row"].rpartition("-")[2] for row in (first, last)] == ["0", "3"]
    bad = quarantine_of(version)
    assert [one["line"] for one in bad] == [3, 4, 6, 7, 8]
    for one, word in zip(bad, ("object", "'robot'", "'x' twice", "surrogate", "_row"), strict=True):
        assert word in one["reason"]
    assert not add(tmp_path, "chats", "chats.jsonl", kind="chat").is_new


def test_a_tool_call_keeps_its_keys(tmp_path: Path, project: Project) -> None:
    """In a table, each call gets the keys of all others, with null."""
    rows = [chat("where?", {"city": "Rome"}), chat("when?", {"day": 3, "city": None})]
    add_chats(tmp_path, *rows)
    add(tmp_path, "table", "chats.jsonl", kind="table")
    of_file, of_chats, of_table = (
        training(project, **keys)[0]
        for keys in ({"train": ["chats.jsonl"]}, {"dataset": "chats"}, {"dataset": "table"})
    )
    assert of_file == of_chats
    assert '"arguments": {"city": "Rome"}' in of_chats
    assert '"day": null' in of_table


def test_preferences(tmp_path: Path, project: Project) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(30)]
    add_chats(tmp_path, *rows)
    found = []
    for keys in ({"train": ["chats.jsonl"]}, {"dataset": "chats"}):
        section = PreferenceSection(seq_len=256, tokenizer="byte", validation_fraction=0.2, test_fraction=0.2, **keys)
        _, data = PreferenceFormat.open(section, project, tmp_path / f"assets-{len(found)}")
        tokens = data.splits["train"][0].tokens
        found.append((tokens.ids[:].tolist(), tokens.splits.tolist()))
    assert found[0] == found[1]


def test_a_prediction_for_a_row(tmp_path: Path, project: Project) -> None:
    version = add_chats(tmp_path, *(chat(f"{number}?", f"{number}") for number in range(20)))
    form, _ = ChatFormat.open(ChatSection(seq_len=64, tokenizer="byte", dataset="chats"), project, tmp_path / "assets")
    (row, *_) = rows_of(version)
    batch = form.encode(row)
    assert batch.keys() == form.encode(json.loads(row["chat"])).keys()
    for name, values in form.encode(json.loads(row["chat"])).items():
        np.testing.assert_array_equal(batch[name], values)


def test_rows_of_columns_become_json(tmp_path: Path, project: Project) -> None:
    rows = [chat("a", "b") | {"source": "x"}, chat("c", {"day": 1}) | {"source": None}]
    table = pa.Table.from_pylist([*rows, {"messages": None, "source": "y"}])
    parquet.write_table(table, tmp_path / "good.parquet")
    version = add(tmp_path, "good", "good.parquet", kind="chat").version
    assert [json.loads(row["chat"])["source"] for row in rows_of(version)] == ["x", None]
    assert [one["line"] for one in quarantine_of(version)] == [3]
    parquet.write_table(table.slice(0, 2), tmp_path / "good.parquet")
    of_file, of_version = (training(project, **keys) for keys in ({"train": ["good.parquet"]}, {"dataset": "good"}))
    assert of_file == of_version


def test_lists_of_messages_are_chats(tmp_path: Path) -> None:
    for row, kind in (
        (chat("a", "b"), "chat"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "chat"),
        ({"chosen": chat("a", "b")["messages"], "rejected": chat("a", "c")["messages"]}, "chat"),
        ({"prompt": "a", "completion": "b"}, "table"),
        ({"messages": 3}, "table"),
        ({"text": "a", **chat("a", "b")}, "text"),
    ):
        path = write(tmp_path / "file.jsonl", row)
        assert infer_kind(list_sources([str(path)], tmp_path), ReadOptions("text")) == kind


def test_personal_data_within_messages(tmp_path: Path, project: Project) -> None:
    rows = [
        chat("mail me", "ann@b.org\nor bob@c.org"),
        chat("send it", {"to": ["cy@d.org"]}) | {"author": "dan@e.org"},
        chat("hello", "there"),
    ]
    version = add_chats(tmp_path, *rows)
    report = search(FindPii((version,), Detector()), LIMITS, most_spans=9)
    assert [(one.column, one.start, one.end) for one in report.spans] == [
        ("messages[1].content", 0, 9),
        ("messages[1].content", 13, 22),
        ("messages[1].tool_calls[0].function.arguments.to[0]", 0, 8),
        ("author", 0, 9),
    ]
    catalog = open_catalog(str(tmp_path / "datasets"))
    masked = execute(RemovePii((version,), Detector(), "mask"), "chats", catalog, LIMITS).version
    first, second, third = (json.loads(row["chat"]) for row in rows_of(masked))
    assert first["messages"][1]["content"] == "[EMAIL]\nor [EMAIL]"
    assert second["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"to": ["[EMAIL]"]}
    assert (second["author"], third) == ("[EMAIL]", rows[2])
    assert masked.manifest.facts["rows_found.email"] == 2
    assert "[EMAIL]\nor [EMAIL]" in training(project, dataset="chats")[0]
    dropped = execute(RemovePii((version,), Detector(), "drop"), "chats", catalog, LIMITS).version
    assert [json.loads(row["chat"]) for row in rows_of(dropped)] == rows[2:]


def test_copies_and_splits(tmp_path: Path, project: Project) -> None:
    """Copies have the same values, in whatever order; training follows `_split`."""
    rows = [chat(f"{number % 20}?", f"{number % 20}") for number in range(40)]
    rows = [row if number < 20 else json.dumps(row, sort_keys=True, indent=None, separators=(",", ":"))
            for number, row in enumerate(rows)]  # fmt: skip
    version = add_chats(tmp_path, *rows)
    catalog = open_catalog(str(tmp_path / "datasets"))
    split = execute(Split((version,), 0.2, 0.3, None), "chats", catalog, LIMITS).version
    found = [row["_split"] for row in rows_of(split)]
    assert found[:20] == found[20:]
    assert training(project, dataset="chats")[1] == found
    deduped = execute(Dedupe((version,), None), "chats", catalog, LIMITS).version
    assert [row["chat"] for row in rows_of(deduped)] == [json.dumps(row) for row in rows[:20]]


def test_steps_of_texts_refuse(tmp_path: Path) -> None:
    version = add_chats(tmp_path, chat("a", "b"))
    catalog = open_catalog(str(tmp_path / "datasets"))
    with pytest.raises(UsageError, match="holds chats"):
        check_text(version.manifest)
    with pytest.raises(UsageError, match="holds chat,"):
        find_clusters(version, 0.8, tmp_path / "a/b", LIMITS)
    with pytest.raises(UsageError, match="holds chat,"):
        mix_of(parse_sets(["chats:1", "other:1"], []), catalog)


def test_labels_are_a_column_beside_the_chat(tmp_path: Path) -> None:
    pair = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "tools": [{"name": "f"}]}
    version = add_chats(tmp_path, chat("a", {"x": 1}), pair, chat("c", "d"))
    ids = [row["_row"] for row in rows_of(version)]
    view = view_of(version, "label")
    contents = [row.content["chat"] for row in queued_rows(version, view, ids)]
    assert contents[1] == "user: 2 + 2?\n\nchosen: assistant: 4\n\nrejected: assistant: 5"
    assert contents[0].startswith('user: a\n\nassistant: \n{"tool_calls": ')
    catalog = open_catalog(str(tmp_path / "datasets"))
    step = ApplyLabels((version,), "label", {ids[0]: "good"})
    labelled = execute(step, "chats", catalog, LIMITS).version
    assert [row["label"] for row in rows_of(labelled)] == ["good", None, None]


@pytest.mark.slow
def test_the_least_certain_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a run, and by what it predicted for the shards."""
    version = add_chats(tmp_path, *(chat(f"{number}?", f"{number} " * (1 + number % 3)) for number in range(12)))
    (tmp_path / "aifx.toml").write_text(
        '[task]\nkind = "chat"\n[model]\nnum_layers = 1\nembed_dim = 16\nnum_heads = 2\n'
        '[data]\ndataset = "chats"\ntokenizer = "byte"\nseq_len = 64\nvalidation_fraction = 0.2\ntest_fraction = 0\n'
        "[train]\nnum_steps = 2\nglobal_batch_size = 4\nvalidate_every = 0\n"
    )
    shards = [str(path) for path in version.shards]
    for command in (["train"], ["predict", *shards, "--output", "found.jsonl"]):
        done = inprocess.run(command, tmp_path, environ_of(tmp_path))
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    view = view_of(version, "label")
    by_run, by_file = (least_certain(version, view, "label", given, 5) for given in ("main", "found.jsonl"))
    assert by_run == by_file
    assert len(by_run) == 5


def test_rows_are_found_by_sql_and_text(tmp_path: Path) -> None:
    odd = '{"messages": [{"role": "user", "content": "caf\\u00e9?"}], "n": 1}'
    version = add_chats(tmp_path, odd, chat("a", "b"), '{"messages": [{"role": "user", "content": "x"}], "n": NaN}')
    sql = "SELECT chat->>'$.messages[0].content' AS first, json_array_length(chat, '$.messages') FROM data"
    (found,) = selected_rows(version, f"{sql} WHERE chat LIKE '%assistant%'", 9, 256 << 20)
    assert found.rows == (("a", 2),)
    catalog = open_catalog(str(tmp_path / "datasets"))
    for text, number in (("ASSISTANT", 1), ("CAFÉ", 0), ('"x"', 2)):
        (row,) = explain_row(catalog, None, text, [version.reference]).rows
        assert row.row.endswith(f"-{number}")
        assert row.text is not None
        assert row.text.startswith('{"messages"')


def test_a_profile_of_chats(tmp_path: Path) -> None:
    version = add_chats(tmp_path, chat("a", "bc"), chat("a", "b", "c", "d"))
    profile = json.loads((version.path / "profile.json").read_text())
    lengths = profile["lengths"]
    assert (lengths["messages"]["min"], lengths["messages"]["max"]) == (2, 4)
    assert lengths["characters"]["min"] == len("user: a") + len("assistant: bc")
    column = profile["columns"]["chat"]
    assert (column["distinct"], column["min"], column["values"]) == (2, None, {})


def test_a_report_of_chats(tmp_path: Path) -> None:
    version = add_chats(tmp_path, chat("a", "bc"), chat("a", "b", "c", "d"))
    page = dataset_page(read_report(open_catalog(str(tmp_path / "datasets")), version.reference, None, None))
    assert "Length of the chats" in page
    assert "in messages, of 2 rows" in page
