"""Runs that train on a version of a data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_versions import LIMITS, make_version
from test_forks import TEXT
from test_training import stopped

import aifx
from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.curation.execution import execute
from aifx.curation.mix import mix_of, parse_sets
from aifx.data.versions.catalog import open_catalog
from aifx.kinds import load_config, read_config
from aifx.runs.binding import record_errors

TOML = """\
[data]
dataset = "corpus"
vocab_size = 300
seq_len = 32
packing = "documents"
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[train]
num_steps = 6
global_batch_size = 4
validate_every = 2
[checkpoint]
every = 2
"""
TEXTS = [TEXT[start : start + 400] for start in range(0, len(TEXT), 400)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_type: Any) -> Any:
    """A project whose run "main" was trained on the only version of "corpus". Not to be changed."""
    tiny = tiny_type(made(tmp_path_factory.mktemp("dataset")))
    tiny.train()
    return tiny


def made(root: Path) -> Project:
    (root / "aifx.toml").write_text(TOML)
    make_version(Project(root), "corpus", {"text": TEXTS}, shards=2)
    return Project(root)


@pytest.fixture
def copy(trained: Any, tmp_path: Path, tiny_type: Any) -> Any:
    root = Path(shutil.copytree(trained.project.root, tmp_path / "copy"))
    return tiny_type(Project(root))


def digest(tiny: Any, run: str = "main") -> Any:
    return tiny.events(run)[-1]["state_digest"]


@pytest.mark.slow
def test_the_run_names_its_version(trained: Any) -> None:
    root = trained.project.root
    manifest = json.loads(next((root / "datasets/corpus").glob("*/manifest.json")).read_text())
    reference = f"corpus@{manifest['digest']}"
    run = trained.project.run("main")
    provenance = json.loads(run.provenance.read_text())
    assert provenance["dataset"] == {"reference": reference}
    assert read_config(run.config, trained.project).data.dataset == reference


@pytest.mark.representative("a run on a version of a data set")
def test_its_checkpoint_names_its_version_and_a_damaged_one_is_found(copy: Any) -> None:
    run, project = copy.run(), copy.project
    version = open_catalog(project.datasets, project).manifest("corpus")
    bound = read_manifest(run.checkpoints / "6").run
    assert bound["data"]["versions"] == [version.whole_reference]
    assert list(record_errors(run, project, 6, bound)) == []
    (path,) = (copy.root / "datasets/corpus").glob("*/manifest.json")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    code, out, err = copy.command("ckpt", "verify", "6", "--json")
    assert code == 1, out + err
    (changed,) = json.loads(out)["changed"]
    assert str(path.parent) in changed
    assert path.name in changed
    shutil.rmtree(path.parent)
    code, out, err = copy.command("ckpt", "verify", "6", "--json")
    assert (code, json.loads(out)["changed"]) == (0, []), err


@pytest.mark.representative("a run on a version of a data set")
def test_it_goes_on_bit_for_bit_on_its_version(copy: Any, trained: Any) -> None:
    """Also after the name has come to mean another version."""
    stopped(copy, 3, run="again")
    make_version(copy.project, "corpus", {"text": TEXTS[:-1]})
    assert copy.train(run="again").resumed_from in (3, 4)
    assert digest(copy, "again") == digest(trained)
    assert copy.records("again") == trained.records()
    copy.train(run="newer")
    references = [read_config(copy.project.run(run).config, copy.project).data.dataset for run in ("again", "newer")]
    assert references[0] != references[1]


@pytest.mark.slow
def test_another_version_is_another_configuration(copy: Any) -> None:
    other = make_version(copy.project, "corpus", {"text": TEXTS[:-1]}).reference
    with pytest.raises(ConfigError, match="another configuration") as refused:
        copy.train(f"data.dataset={other}", "train.num_steps=8")
    assert "data.dataset" in refused.value.why


@pytest.mark.representative("a run on a version of a data set")
def test_documents_of_train_and_export_have_the_conflicts_of_its_licences(tmp_path: Path, tiny_type: Any) -> None:
    (tmp_path / "aifx.toml").write_text(TOML)
    project = Project(tmp_path)
    for name, license in (("kernel", "GPL-2.0-only"), ("tools", "GPL-3.0-only")):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": f"{name} {text}"}) + "\n" for text in TEXTS))
        aifx.data_add("corpus", file, license=license, project=tmp_path)
    tiny = tiny_type(project)
    answers = [tiny.command(*args, "--json") for args in (("train",), ("export", str(tmp_path / "made")), ("train",))]
    assert [code for code, _, _ in answers] == [0, 0, 0], answers
    trained, exported, again = (json.loads(out) for _, out, _ in answers)
    (conflict,) = trained["license_conflicts"]
    assert [one["license"] for one in conflict["licenses"]] == ["GPL-2.0-only", "GPL-3.0-only"]
    assert exported["license_conflicts"] == [conflict]
    assert again["license_conflicts"] is None  # it had ended
    (tmp_path / "aifx.toml").write_text(f'{TOML}[datasets]\nlicense_conflicts = "refuse"\n')
    for args in (("train", "--run", "other"), ("export", str(tmp_path / "other"))):
        code, out, err = tiny.command(*args, "--json")
        assert (code, json.loads(out)["error"]["license_conflicts"]) == (2, [conflict]), err


@pytest.mark.parametrize("key", ["train", "validation", "test"])
def test_files_beside_it_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "aifx.toml").write_text(TOML)
    with pytest.raises(ConfigError, match=f"data.dataset and data.{key} cannot be used together"):
        load_config(Project(tmp_path), [f'data.{key}=["data/a.txt"]'])


@pytest.mark.representative("a run on a version of a data set")
def test_a_root_elsewhere(trained: Any, tmp_path: Path, tiny_type: Any) -> None:
    project = Project(tmp_path / "project", str(tmp_path / "store"))
    project.root.mkdir()
    (project.root / "aifx.toml").write_text(f'[datasets]\nroot = "{tmp_path}/store"\n{TOML}')
    make_version(project, "corpus", {"text": TEXTS}, shards=2)
    tiny = tiny_type(Project(project.root))
    tiny.train()
    assert digest(tiny) == digest(trained)
    assert not (project.root / "datasets").exists()


@pytest.mark.representative("a run on a version of a data set")
def test_a_version_of_other_rows_gives_other_batches(copy: Any, trained: Any) -> None:
    make_version(copy.project, "corpus", {"text": TEXTS[len(TEXTS) // 4 :]})
    copy.train(run="other")
    assert digest(copy, "other") != digest(trained)


@pytest.mark.slow
def test_a_mix_is_streamed_and_resumed_bit_for_bit(copy: Any) -> None:
    make_version(copy.project, "books", {"text": [text.upper() for text in TEXTS[:40]]})
    catalog = open_catalog(copy.project.datasets, copy.project)
    step = mix_of(parse_sets(["corpus:0.75", "books:0.25"], ["books:2"]), catalog)
    reference = execute(step, "blend", catalog, LIMITS).version.manifest.whole_reference
    mixed = "data.dataset=blend"
    copy.train(mixed, run="whole")
    stopped(copy, 3, mixed, run="stopped")
    copy.train(mixed, run="stopped")
    assert digest(copy, "stopped") == digest(copy, "whole") != digest(copy)
    recorded = json.loads(copy.project.run("whole").provenance.read_text())["dataset"]
    assert recorded["reference"] == reference
    assert [(p["reference"].partition("@")[0], p["weight"], p["epochs"]) for p in recorded["parts"]] == [
        ("corpus", 0.75, None),
        ("books", 0.25, 2.0),
    ]
    bound = read_manifest(copy.run("whole").checkpoints / "6").run["data"]
    assert bound["versions"] == [one["reference"] for one in (recorded, *recorded["parts"])]
    assert list(record_errors(copy.run("whole"), copy.project, 6, {"data": bound})) == []


def test_a_run_longer_than_the_epochs_of_its_mix_is_refused(tmp_path: Path, tiny_type: Any) -> None:
    project = made(tmp_path)
    make_version(project, "books", {"text": TEXTS[:40]})
    catalog = open_catalog(project.datasets, project)
    step = mix_of(parse_sets(["corpus:1", "books:1"], ["1"]), catalog)
    execute(step, "blend", catalog, LIMITS)
    with pytest.raises(ConfigError, match="too few rows") as refused:
        tiny_type(project).train("data.dataset=blend", "train.num_steps=100000", run="long")
    assert "train.num_steps=" in refused.value.hint
