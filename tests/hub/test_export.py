"""`aifx export`: what goes out is what came in, and what transformers expects."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace

import inprocess
import ml_dtypes
import peer_models
import pytest
from safetensors.numpy import load_file, save_file

from aifx.core.artifact import Artifact, read_artifact
from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.hub import exporting
from aifx.hub.architectures import expressed_by
from aifx.hub.exported import KIND, VERSION
from aifx.hub.exporting import export_model
from aifx.hub.importing import import_model
from aifx.kinds import bundled
from aifx.models import Family
from aifx.models.decoder.section import PRESETS, DecoderSection


def imported(folder, project):
    return project.run(import_model(str(folder), project).run)


@pytest.mark.parametrize("name", peer_models.FIXED)
def test_import_and_export_are_byte_equal_and_the_config_says_the_same(name, hub_models, empty_project, tmp_path):
    source = hub_models(name)
    run = imported(source, empty_project)
    made = export_model(tmp_path / "out", run, empty_project)
    assert not made.rounded
    want, got = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert want.keys() == got.keys()
    for key, value in want.items():
        assert value.dtype == got[key].dtype
        assert value.tobytes() == got[key].tobytes(), key
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out"))
    assert before["architectures"] == after["architectures"]
    again = imported(tmp_path / "out", empty_project)
    digests = [json.loads(r.events.read_text().splitlines()[-1])["state_digest"] for r in (run, again)]
    assert digests[0] == digests[1]


def test_shards_types_and_files(hub_models, empty_project, tmp_path):
    source = shutil.copytree(hub_models("qwen2"), tmp_path / "source")
    narrow = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(source / "model.safetensors").items()}
    save_file(narrow, source / "model.safetensors")
    run = imported(source, empty_project)
    made = export_model(tmp_path / "shards", run, empty_project, shard_bytes=4000)
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert all((tmp_path / "shards" / file).stat().st_size < 4000 + 8000 for file in files)
    got = {key: value for file in files for key, value in load_file(tmp_path / "shards" / file).items()}
    assert {key: value.tobytes() for key, value in got.items()} == {k: v.tobytes() for k, v in narrow.items()}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in got.values())
    names = {file.name for file in made.files}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"} <= names
    wide = export_model(tmp_path / "wide", run, empty_project, dtype="float32")
    assert (wide.dtype, wide.rounded) == ("float32", False)
    spent = {"joules": 1.8e6, "seconds": 100.0, "basis": "measured"}
    with run.events.open("a") as events:  # as a run writes that was trained
        lines = [{"event": "start", "account": {"energy": spent}}, {"event": "stop", "account": {"energy": spent}}]
        events.writelines(json.dumps(line) + "\n" for line in lines)
    half = export_model(tmp_path / "half", run, empty_project, dtype="float16")
    assert (half.dtype, half.rounded) == ("float16", True)
    card = (tmp_path / "wide/README.md").read_text()
    assert "| energy | unknown |" in card
    assert "pipeline_tag: text-generation" in card
    assert "| energy | 1 kWh, measured |" in (tmp_path / "half/README.md").read_text()


def test_a_byte_that_the_disk_changes_is_found_and_nothing_is_left(hub_models, empty_project, tmp_path, monkeypatch):
    run = imported(hub_models("llama"), empty_project)

    def damaged(arrays, path, metadata):
        save_file(arrays, path, metadata)
        data = bytearray(path.read_bytes())
        data[-1] ^= 4
        path.write_bytes(data)

    monkeypatch.setattr(exporting, "save_file", damaged)
    with pytest.raises(AifxError, match="damaged"):
        export_model(tmp_path / "out", run, empty_project)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_damaged_checkpoint_is_not_exported(hub_models, empty_project, tmp_path):
    run = imported(hub_models("llama"), empty_project)
    arrays = max(
        (p for p in (run.checkpoints / "0" / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    with pytest.raises(AifxError, match="damaged"):
        export_model(tmp_path / "out", run, empty_project)
    assert not (tmp_path / "out").exists()


def test_the_command_and_misuse(hub_models, empty_project, tmp_path):
    imported(hub_models("gpt2"), empty_project)

    def aifx(*args):
        return inprocess.run(["export", *args], empty_project.root, {**os.environ})

    done = aifx("../out", "--run", "gpt2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "GPT2LMHeadModel"
    for wrong, text in (
        (["../out", "--dtype", "bfloat16"], "exists already"),
        (["../nowhere/out"], "no folder"),
        (["../new/.."], f"{tmp_path} exists already"),
        (["../new/../out", "--shard-size", "2GB"], f"{tmp_path / 'out'} exists already"),
        (["../new", "--dtype", "int8"], "not a type of weights"),
        (["../new", "--format", "gguf"], "not a format"),
        (["../new", "--shard-size", "many"], "not a size"),
        (["../new", "--step", "7"], "no checkpoint of step 7"),
    ):
        refused = aifx(*wrong)
        assert refused.returncode == 2
        assert text in refused.stderr
        assert "hint: " in refused.stderr
    assert not (tmp_path / "new").exists()


def export_command(project, *args, code=0):
    done = inprocess.run(["export", *args], project.root, {**os.environ})
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if "--json" in args else done.stdout


def test_asked_again_it_says_that_the_folder_is_there(hub_models, empty_project, tmp_path):
    imported(hub_models("llama"), empty_project)
    first = export_command(empty_project, "../out", "--json")
    assert first["is_new"]
    assert {file["name"] for file in first["files"]} == {path.name for path in (tmp_path / "out").iterdir()}
    for file in first["files"]:
        data = (tmp_path / "out" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    before = {path: path.stat() for path in (tmp_path / "out").iterdir()}
    assert export_command(empty_project, "../out", "--json") == {**first, "is_new": False}
    text = export_command(empty_project, "../out")
    assert str(tmp_path / "out") in text
    assert "already" in text
    assert {path: path.stat() for path in (tmp_path / "out").iterdir()} == before


def test_asked_again_on_a_disk_that_can_only_be_read(hub_models, empty_project, tmp_path, monkeypatch):
    run, out = imported(hub_models("llama"), empty_project), tmp_path / "out"
    export_model(out, run, empty_project)
    real = os.unlink

    def unlink(path, *args, **kwargs):
        if str(path).startswith(str(out)):  # also of a file that is not there
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink)
    assert not export_model(out, run, empty_project).is_new


def test_a_folder_of_other_content_is_not_taken_for_the_export(hub_models, empty_project, tmp_path):
    run = imported(hub_models("llama"), empty_project)
    out = tmp_path / "out"

    def refused(*args):
        error = export_command(empty_project, str(out), *args, "--json", code=2)["error"]
        assert (error["what"], error["hint"]) == (f"{out} exists already", f"aifx export {out}-2")
        return error["why"]

    out.mkdir()
    assert "manifest.json" in refused()
    (out / "manifest.json").write_text("{}")
    assert "manifest.json" in refused()
    shutil.rmtree(out)
    export_model(out, run, empty_project)
    assert "dtype" in refused("--dtype", "float16")
    assert "shard_bytes" in refused("--shard-size", "1MB")
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card + "mine\n")
    assert "README.md" in refused()
    (out / "README.md").unlink()
    (tmp_path / "card").write_text(card)
    (out / "README.md").symlink_to(tmp_path / "card")
    assert "README.md" in refused()
    (out / "README.md").unlink()
    os.mkfifo(out / "README.md")
    assert "README.md" in refused()
    (out / "README.md").unlink()
    (out / "README.md").write_text(card)
    made = read_artifact(out, KIND, VERSION)
    other = replace(made, content={**made.content, "state_digest": "0"})
    (out / "manifest.json").write_bytes(other.encode())
    assert "state_digest" in refused()
    (out / "manifest.json").write_bytes(made.encode().replace(made.content["run"].encode(), b"other"))
    assert "manifest.json" in refused()
    (out / "manifest.json").unlink()
    os.mkfifo(out / "manifest.json")
    assert "manifest.json" in refused()
    (tmp_path / "link").symlink_to(out)
    assert "link" in export_command(empty_project, "../link", "--json", code=2)["error"]["why"]


def test_what_the_user_has_beside_it_stays_and_all_can_read_it_who_can_read_a_new_folder(
    hub_models, empty_project, tmp_path
):
    run = imported(hub_models("llama"), empty_project)
    names = ("out.tmp-20241130", ".out.exporting", ".removed-pictures")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("")
    export_model(tmp_path / "out", run, empty_project)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain" / "file").write_text("")
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {
        (tmp_path / "plain" / "file").stat().st_mode
    }
    assert all((tmp_path / name / "mine").exists() for name in names)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {*names, "out", "plain", "project"}


def test_of_two_at_the_same_time_the_first_stays(hub_models, empty_project, tmp_path, monkeypatch):
    run, write_card = imported(hub_models("llama"), empty_project), exporting.write_card
    first = []

    def meanwhile(folder, *args, **kwargs):
        if not first:
            first.append(None)
            first.append(export_model(tmp_path / "out", run, empty_project))
        write_card(folder, *args, **kwargs)

    monkeypatch.setattr(exporting, "write_card", meanwhile)
    second = export_model(tmp_path / "out", run, empty_project)
    assert second == replace(first[1], is_new=False)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


@pytest.fixture
def exported(hub_models, empty_project, tmp_path):
    """An exported folder of several files of weights."""
    run = imported(hub_models("llama"), empty_project)
    export_model(tmp_path / "out", run, empty_project, shard_bytes=4000)
    return tmp_path / "out"


def test_a_damaged_export_is_not_imported(exported, empty_project):
    """Each file, and each 97th byte of the manifest."""

    def refused() -> DataError:
        with pytest.raises(DataError) as caught:
            import_model(str(exported), empty_project, name="again")
        assert str(exported / "manifest.json") in caught.value.hint
        return caught.value

    names = [path.name for path in exported.iterdir() if path.name not in ("README.md", "manifest.json")]
    assert len(names) > 6
    for name in names:
        whole = (exported / name).read_bytes()
        for data in (whole[:-1] + bytes([whole[-1] ^ 1]), whole + b" ", None):
            (exported / name).unlink() if data is None else (exported / name).write_bytes(data)
            if data is not None or name != "config.json":  # without which a folder is no model's
                assert name in refused().why
        if name != "config.json":
            for put in (os.mkdir, os.mkfifo):
                (exported / name).unlink(missing_ok=True)
                put(exported / name)
                assert name in refused().why
                (exported / name).rmdir() if (exported / name).is_dir() else (exported / name).unlink()
        (exported / name).write_bytes(whole)
    whole = (exported / "manifest.json").read_bytes()
    for at in [*range(0, len(whole), 97), whole.index(b"export") + 1]:
        (exported / "manifest.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "manifest.json" in refused().why
    assert not (empty_project.runs_path / "again").exists()
    (exported / "manifest.json").write_bytes(whole)
    (exported / "README.md").write_text("a card of one's own")
    assert import_model(str(exported), empty_project, name="again").is_new


def test_an_export_in_the_hubs_cache_is_verified_and_another_folder_is_not(exported, empty_project, tmp_path):
    cached = tmp_path / "cached"
    cached.mkdir()
    for path in exported.iterdir():
        (cached / path.name).symlink_to(path)
    assert import_model(str(cached), empty_project).is_new
    (exported / "tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(DataError) as caught:
        import_model(str(cached), empty_project, "again")
    assert "tokenizer.json" in caught.value.why
    for data in (None, b'{"name": "an application of the web"}', b"\xff"):
        (exported / "manifest.json").unlink() if data is None else (exported / "manifest.json").write_bytes(data)
        assert import_model(str(cached), empty_project, f"run-{data and len(data)}").is_new


def test_a_manifest_of_a_stranger_names_no_file_outside(exported, empty_project, tmp_path):
    made = read_artifact(exported, KIND, VERSION)
    (tmp_path / "secret").write_text("")
    other = Artifact(KIND, VERSION, made.content, {"../secret": made.files["config.json"]})
    (exported / "manifest.json").write_bytes(other.encode())
    with pytest.raises(DataError) as caught:
        import_model(str(exported), empty_project, "again")
    assert "../secret" in caught.value.why


def decoder():
    family = bundled("model")["decoder"]
    assert isinstance(family, Family)
    return family


@pytest.mark.parametrize(
    ("preset", "want"),
    [("tiny", "Qwen3ForCausalLM"), ("gpt2-124m", "GPT2LMHeadModel"), ("llama3-8b", "LlamaForCausalLM")],
)
def test_models_of_ones_own_have_an_architecture(preset, want):
    section = DecoderSection(**{"vocab_size": 70, "max_seq_len": 64, **PRESETS[preset], "dropout": 0.1})
    assert expressed_by(decoder(), section, None).name == want


def test_a_model_that_no_architecture_computes_is_refused_with_what_differs():
    section = DecoderSection(vocab_size=70, max_seq_len=64, norm="layer_norm")
    with pytest.raises(ConfigError, match="no architecture") as caught:
        expressed_by(decoder(), section, None)
    assert "model.norm" in caught.value.why


def test_weights_that_float16_cannot_hold_are_refused(hub_models, empty_project, tmp_path):
    source = shutil.copytree(hub_models("llama"), tmp_path / "source")
    found = load_file(source / "model.safetensors")
    found["model.norm.weight"][0] = 1e6
    save_file(found, source / "model.safetensors")
    run = imported(source, empty_project)
    with pytest.raises(AifxError, match=r"model\.norm\.weight .*float16"):
        export_model(tmp_path / "out", run, empty_project, dtype="float16")
