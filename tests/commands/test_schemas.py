"""docs/schemas: generated from the types, complete, and true of the files of a run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from program import run
from published_schemas import FOLDER, check_document, schema_of, validator

DOCS = FOLDER.parent


@pytest.mark.skipif(sys.version_info < (3, 12), reason="pydantic reads typing.TypedDict since Python 3.12")
def test_the_committed_schemas_are_those_of_the_types() -> None:
    from aifx.verbs.schemas import schemas

    committed = {str(path.relative_to(FOLDER)): json.loads(path.read_text()) for path in FOLDER.rglob("*.json")}
    assert schemas() == committed, "python -m aifx.verbs.schemas"


@pytest.mark.parametrize("page", ["json.md", "bench.md", "doctor.md", "doctor-fleet.md", "doctor-diff.md"])
def test_documents_of_the_pages_conform(page: str) -> None:
    text = (DOCS / page).read_text()
    blocks = list(re.finditer(r"```json\n(.*?)```", text, re.S))
    assert blocks
    for block in blocks:
        name = re.findall(r"\(schemas/(\S+)\.json\)", text[: block.start()])[-1]
        check_document(name, json.loads(block[1]))


def test_every_schema_is_linked() -> None:
    linked = {name for page in DOCS.glob("*.md") for name in re.findall(r"\(schemas/(\S+\.json)\)", page.read_text())}
    assert linked == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.json")}


def test_an_unknown_key_and_a_missing_one_are_errors() -> None:
    document: dict[str, Any] = {"schema_version": 1, "run": "a", "renamed_from": "b"}
    check_document("commands/runs-rename", document)
    failure = {"what": "no run 'c'", "why": "", "hint": "aifx runs ls", "exit_code": 2, "transient": False}
    check_document("commands/runs-rename", {"schema_version": 1, "error": failure})
    for wrong in ({**document, "more": 1}, {"schema_version": 1, "run": "a"}, {**document, "run": 1}):
        assert list(validator("commands/runs-rename").iter_errors(wrong))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("runs ls --json", "commands/runs-ls"),
        ("train --json --set train.num_steps=3", "commands/train"),
        ("bench hardware --json", "commands/bench"),
        ("bench gate --json", "commands/bench-gate"),
        ("--version --json", "commands/version"),
        ("doctor --only nvidia --json", "commands/doctor"),
        ("doctor node --json", "commands/doctor"),
        ("doctor fleet --json --hosts n[1-2]", "commands/doctor-fleet"),
        ("config schema --json", "failure"),
        ("nonsense --json", "failure"),
    ],
)
def test_a_command_has_its_schema(arguments: str, name: str) -> None:
    assert schema_of(arguments.split()) == name


def test_a_snapshot_conforms(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor", "--only", "memory", "--record", "node.json", "--with-snapshot", "--json")
    check_document("files/snapshot", json.loads((tmp_path / "node.json").read_text()))
    check_document("files/snapshot", json.loads(done.stdout)["snapshot"])
    rules = run(tmp_path, "doctor", "rules", "--json")
    assert json.loads(rules.stdout)["rules"]
    run(tmp_path, "doctor", "diff", "node.json", "node.json", "--json")


@pytest.mark.representative("published schemas")
def test_files_of_a_run_conform(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text(
        """
[data]
train = ["text.txt"]
vocab_size = 257
seq_len = 16
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[train]
num_steps = 4
global_batch_size = 2
validate_every = 2
[checkpoint]
every = 2
"""
    )
    (tmp_path / "text.txt").write_text("the whale and the sea and the ship\n" * 200)
    for arguments in (
        ("train", "--json"),
        ("train", "--json"),
        ("train", "--fork", "other", "--step", "2", "--json"),
        ("eval", "--run", "main", "--gate", "loss > 0", "--json"),
        ("eval", "--run", "main", "--data", "text.txt", "--json"),
        ("generate", "--run", "main", "--max-tokens", "2", "--json"),
        ("runs", "tag", "main", "baseline", "--json"),
        ("runs", "show", "main", "--json"),
        ("runs", "compare", "main", "other", "--json"),
        ("ckpt", "show", "--run", "main", "--arrays", "--json"),
        ("ckpt", "verify", "--run", "main", "--json"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    main = tmp_path / "runs" / "main"
    for name in ("provenance", "kernels", "digests", "tags"):
        check_document(f"files/{name}", json.loads((main / f"{name}.json").read_text()))
    check_document("files/lock", json.loads((main / "lock").read_text()))
    check_document("files/eval", json.loads((main / "eval" / "4.json").read_text()))
    manifest = main / "checkpoints" / "4" / "manifest.json"
    check_document("files/manifest", json.loads(manifest.read_text()))
    for name in ("metrics", "events"):
        for line in (main / f"{name}.jsonl").read_text().splitlines():
            check_document(f"files/{name}", json.loads(line))
