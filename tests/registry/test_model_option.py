"""`--model NAME@ALIAS`: commands and functions take a version of a registry's model wherever they take a run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import inprocess
import model_runs
import pytest

import aifx
from aifx.core.artifact import DamagedArtifact, SealedFile, read_artifact
from aifx.core.errors import AifxError, CheckpointError, EnvironmentFault, UsageError
from aifx.core.parsing import parse_json
from aifx.core.project import Project, cache_path
from aifx.data.versions.catalog import Catalog
from aifx.evaluation.held_out import Report, write_report
from aifx.registry.roots import KIND, VERSION
from aifx.registry.versions import UntrustedCode, open_version
from aifx.runs.provenance import data_behind
from aifx.verbs.models import choose_model, is_reference
from aifx.verbs.registry_acts import _data_facts


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a run of its own code as tiny@v1, in the working directory."""
    return make(tmp_path, "OWN", monkeypatch)


def make(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = model_runs.make_project(folder / "project", getattr(model_runs, name))
    model_runs.make_run(project)
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(folder / "cache"))
    aifx.registry_push("main", "tiny")
    return project


def run(*args: str) -> tuple[int, str, str]:
    done = inprocess.run(args, Path.cwd(), dict(os.environ))
    return done.returncode, done.stdout, done.stderr


def test_a_text_with_an_at_sign_that_is_no_folder_is_a_reference(project: Project) -> None:
    assert is_reference("fraud@v3")
    assert not is_reference("runs/a@b")
    assert not is_reference("fraud")
    (project.root / "fraud@v3").mkdir()
    assert not is_reference("fraud@v3")
    assert choose_model("main", None) == project.run("main").path
    with pytest.raises(UsageError, match="--run cannot be used with --model"):
        choose_model("main", "fraud@production")
    with pytest.raises(UsageError, match="names no version"):
        choose_model(None, "fraud")


def test_own_code_is_refused_with_the_option_that_trusts_it(project: Project) -> None:
    code, _, err = run("eval", "--model", "tiny@v1")
    assert code == 2
    digest = err.rpartition("--trust-code ")[2].strip()
    for given in (None, digest[:11], "0" * 12):  # fewer digits could be those of another version
        with pytest.raises(UntrustedCode):
            aifx.load("tiny@v1", trust_code=given)
    shutil.rmtree(project.run("main").path)
    (project.root / "tiny.py").unlink()
    code, out, _ = run("eval", "--model", "tiny@v1", "--trust-code", digest, "--json")
    assert code == 0
    assert json.loads(out)["model"].startswith(digest)
    with pytest.raises(UsageError, match="--trust-code requires a model version"):
        aifx.load("runs/main", trust_code=digest)


@pytest.mark.parametrize("kind", ["descriptions", "elsewhere"])
def test_files_that_the_digest_does_not_cover_are_refused(project: Project, kind: str) -> None:
    """A person who can write to a root could add code to a version that is trusted, or take away its weights."""
    (folder,) = (project.root / "registry/models/tiny/versions").iterdir()
    (folder / "code/json.py").write_text("")
    made = read_artifact(folder, KIND, VERSION)
    if kind == "descriptions":
        made = replace(made, descriptions={"code/json.py": SealedFile(0, sha256(b"").hexdigest())})
    else:
        made = replace(made, notes={**made.notes, "elsewhere": {"weights.safetensors": f"{'a' * 64}/weights"}})
    (folder / "manifest.json").write_bytes(made.encode())
    why = "its digest does not cover" if kind == "descriptions" else "is not in its folder"
    assert any(why in one.why for one in aifx.registry_verify().problems)
    for call in (
        lambda: aifx.load("tiny@v1", trust_code=made.digest),
        lambda: open_version(folder, "tiny", project, trust_code=made.digest),
        lambda: aifx.registry_pull("tiny@v1", "there"),
    ):
        with pytest.raises(AifxError, match=why):
            call()


def test_code_that_the_manifest_does_not_name_does_not_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (stored,) = (project.root / "registry/models/tiny/versions").iterdir()
    digest = read_artifact(stored, KIND, VERSION).digest
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    aifx.load("tiny@v1", trust_code=digest)
    folder = cache_path("models") / digest
    assert [path.name for path in (folder / "code").iterdir()] == ["tiny.py"]
    for name in ("helper.py", "json/__init__.py", "__pycache__/tiny.cpython-313.pyc", "tiny.so"):
        stray = folder / "code" / name
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"")
        with pytest.raises(DamagedArtifact, match=f"code/{name} is not in manifest.json") as caught:
            open_version(folder, "tiny", project, trust_code=digest)
        assert caught.value.hint == f"rm {stray}"
        stray.unlink()
    assert open_version(folder, "tiny", project, trust_code=digest)[0].model_digest == digest
    artifact = read_artifact(folder, KIND, VERSION)
    compiled = {"code/__pycache__/tiny.cpython-313.pyc": SealedFile(0, sha256(b"").hexdigest())}
    (folder / "manifest.json").write_bytes(replace(artifact, files={**artifact.files, **compiled}).encode())
    with pytest.raises(DamagedArtifact, match="is code without its source"):
        open_version(folder, "tiny", project)


def test_what_is_not_there_is_named(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "one of: v1" in run("predict", "rows.csv", "--model", "tiny@production")[2]
    assert "no model 'tin'" in run("predict", "rows.csv", "--model", "tin@v1")[2]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the model tiny@v1 is not found"):
        aifx.load("tiny@v1")
    monkeypatch.setenv("AIFX_REGISTRY__ROOT", str(project.root / "registry"))
    with pytest.raises(UntrustedCode):
        aifx.load("tiny@v1")


SLOW_DAMAGES = [pytest.param(name, marks=pytest.mark.slow) for name in ("missing", "unreadable")]


@pytest.mark.parametrize("damage", [*SLOW_DAMAGES, "gone"])
def test_a_run_whose_data_is_not_known_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make(tmp_path, "TEXT", monkeypatch)
    base = project.run("main")
    model_runs.make_run(project, name="tuned", base=base)
    with open(project.config_path, "a") as file:
        file.write('[datasets]\nlicense_allow = ["MIT"]\n')
    if damage == "missing":
        base.provenance.unlink()
    elif damage == "unreadable":
        base.provenance.write_text("{")
    else:
        shutil.rmtree(base.path)
    for act in (
        lambda: aifx.registry_push("tuned", "fraud"),
        lambda: aifx.export_model("runs/tuned", "out"),
    ):
        with pytest.raises(CheckpointError, match="the data behind run tuned is not known") as raised:
            act()
        assert "it goes back to run main" in str(raised.value)
    base.imported.parent.mkdir(exist_ok=True)
    base.provenance.unlink(missing_ok=True)
    base.imported.write_text("{}")  # an imported model has none
    assert data_behind(project.run("tuned"), project) == []


def test_evidence_of_a_run_names_the_data_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of the model that the run was tuned from."""
    project = make(tmp_path, "TABLE", monkeypatch)
    tuned = project.run("main")
    provenance = json.loads(tuned.provenance.read_text())
    base = {"run": "base@1", "step": 1, "digest": "1" * 64, "data": ["people@3f2a"]}
    tuned.provenance.write_text(json.dumps({**provenance, "finetuned_from": base}))
    aifx.registry_push("main", "tuned")
    version = aifx.registry_show_version("tuned@v1")
    assert version.entries[0].facts["data"] == ["people@3f2a"]
    for measured in ("", "people@77aa"):
        write_report(tuned, Report("main", 1, "test", "none", {}, (), data=measured, data_digest="5" * 64))
        aifx.registry_attest("tuned@v1", kind="eval")
        assert aifx.registry_show_version("tuned@v1").evidence[-1].content["data"] == measured


def test_licences_are_not_unknown_because_a_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger would keep that, and no later push changes it."""
    project = model_runs.make_project(tmp_path / "project", model_runs.TABLE)
    run = project.run("main")
    run.path.mkdir(parents=True)
    run.provenance.write_text(json.dumps({"dataset": {"reference": f"people@{'3' * 64}"}}))
    assert _data_facts(run, project)["licenses"] == ["unknown"]  # it was deleted

    def down(*_: object) -> None:
        raise EnvironmentFault("could not read s3://bucket/datasets")

    monkeypatch.setattr(Catalog, "manifest", down)
    with pytest.raises(EnvironmentFault):
        _data_facts(run, project)


@pytest.mark.slow
def test_a_table_is_measured_and_predicted_as_by_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make(tmp_path, "TABLE", monkeypatch)
    ours, theirs = aifx.evaluate("runs/main"), aifx.evaluate("tiny@v1")
    assert (theirs.metrics, theirs.baselines) == (ours.metrics, ours.baselines)
    assert ours.model is None
    pulled = tmp_path / "cache/models" / str(theirs.model)
    assert parse_json((pulled / "eval/1.json").read_bytes())["model"] == theirs.model
    (one,) = aifx.evaluate("tiny@v1", data=["data/table.csv"]).datasets
    assert one.metrics == aifx.evaluate("runs/main", data=["data/table.csv"]).datasets[0].metrics
    answers = [run("predict", "data/table.csv", *model)[1] for model in (("--run", "main"), ("--model", "tiny@v1"))]
    assert answers[0] == answers[1]
    made = aifx.predict_files("tiny@v1", "data/table.csv", output="out.jsonl")
    assert (made.run, made.model, made.predictions) == ("tiny@v1", theirs.model, 60)
    code, out, _ = run("eval", "--model", "tiny@v1", "--gate", "accuracy >= 2")
    assert code == 1
    assert f"model tiny@v1 ({str(theirs.model)[:12]})" in out
    options: dict[str, Any] = {"data": "data/table.csv", "metric": "min loss", "settings": {"eval.group": "_row"}}
    found = aifx.compare_models("tiny@v1", "runs/main", margin=0.5, **options)
    assert (found.difference, found.subject.digest) == (0.0, theirs.model)
    (project.root / "data/table.csv").write_text("amount,colour,target\n")  # of another project
    assert aifx.load("tiny@v1").run == "tiny@v1"


@pytest.mark.slow
def test_only_rows_that_may_have_changed_their_split_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = model_runs.TABLE.replace('path = "data/table.csv"', 'dataset = "rows"')
    monkeypatch.chdir(model_runs.make_project(tmp_path / "project", toml).root)
    aifx.data_add("rows", "data/table.csv", license="CC0-1.0")
    aifx.data_split("rows", validation=0.2, test=0.2)
    assert run("train", "--run", "main", "--set", "train.num_steps=1")[0] == 0
    aifx.registry_push("main", "tiny")
    for share, is_warned_of in ((0.2, False), (0.3, True)):  # other shares divide all rows again
        assert "the data has changed" not in run("eval", "--model", "tiny@v1")[2]
        with open("data/table.csv", "a") as file:
            file.write("0.5,x,yes\n" * 20)
        aifx.data_add("rows", "data/table.csv", license="CC0-1.0")
        aifx.data_split("rows", validation=0.2, test=share)
        assert ("the data has changed since model tiny@v1" in run("eval", "--model", "tiny@v1")[2]) is is_warned_of


@pytest.mark.slow
def test_a_run_is_compared_with_the_version_in_service_on_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project names no data set. The first comparison has nothing to compare with, which is evidence, too."""
    toml = model_runs.TABLE.replace('path = "data/table.csv"', "")
    monkeypatch.chdir(model_runs.make_project(tmp_path / "project", toml).root)
    Path("policy.toml").write_text('[aliases.production]\nbetter = {margin = 0.9, metric = "min loss"}\n')
    aifx.registry_init("policy.toml")
    other = ["--against", "tiny@production", "--metric", "min loss", "--margin", "0.9", "--set", "eval.group=_row"]
    digests = []
    for number, verdict in enumerate(("first", "not worse"), 1):
        with open("data/table.csv", "a") as file:
            file.writelines(f"{row % 7},x,{'no' if row % 2 else 'yes'}\n" for row in range(400 * number))
        aifx.data_add("rows", "data/table.csv", license="CC0-1.0")
        made = aifx.data_split("rows", validation=0.2, test=0.3)
        name = f"run-{number}"
        assert run("train", "--run", name, "--set", f"data.dataset={made.reference}", "--set=train.num_steps=1")[0] == 0
        assert run("eval", "--run", name, *other)[0] == (2 if number == 1 else 0)
        code, out, err = run("eval", "--run", name, *other, "--allow-first", "--json")
        assert (code, json.loads(out)["verdict"], err) == (0, verdict, "")
        pushed = aifx.registry_push(name, "tiny")
        for _ in range(2 if verdict == "first" else 1):  # that is no look at the rows
            assert aifx.registry_attest(pushed.reference, kind="comparison").action == "attest"
        assert aifx.registry_promote(pushed.reference, "production").action == "promote"
        digests.append(pushed.digest)
    found = json.loads(out)
    assert found["against"] == digests[0]
    assert found["data"].startswith(made.reference)
    assert found["different_settings"] == {}
    assert run("eval", "--run", name, "--against", "run-1", "--allow-first")[0] == 2
    assert run("eval", "--run", name, "--against", "tiny@v9", "--allow-first")[0] == 2
    assert run("eval", "--run", name, "--allow-first")[0] == 2


@pytest.mark.slow
def test_a_language_model_writes_serves_and_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "TEXT", monkeypatch)
    ours, theirs = (aifx.generate(model, "the", max_tokens=8) for model in ("runs/main", "tiny@v1"))
    assert (ours.text, ours.model) == (theirs.text, None)
    settings = {"serve.port": 0, "serve.slots": [1]}
    listening = []
    for model in ("runs/main", "tiny@v1"):
        with aifx.serve(model, settings=settings) as server:
            listening.append(server.listening)
    assert listening[0].system_fingerprint == listening[1].system_fingerprint
    assert listening[1].model_digest == theirs.model
    with pytest.raises(UsageError, match="--watch with --model tiny@v1"):
        aifx.serve("tiny@v1", settings=settings, watch=True)
    exported = [aifx.export_model(model, f"out-{number}") for number, model in enumerate(("runs/main", "tiny@v1"))]
    assert exported[0].architecture == exported[1].architecture
    from safetensors.numpy import load_file

    first, second = (load_file(f"out-{number}/model.safetensors") for number in range(2))
    assert {key: value.tobytes() for key, value in first.items()} == {k: v.tobytes() for k, v in second.items()}
    assert not aifx.export_model("tiny@v1", "out-1").is_new
