"""`aifx export --format orbax` and `aifx import --format orbax`: MaxText's layout, by Orbax's public API."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import adapter_runs
import inprocess
import jax
import numpy as np
import orbax_models
import peer_models
import pytest
from safetensors.numpy import load_file

from aifx.checkpoint.naming import flat_names, nest
from aifx.checkpoint.orbax import read_orbax, restore_orbax, save_orbax
from aifx.core.errors import AifxError, ConfigError, DataError, UsageError
from aifx.core.project import Project, RunDirectory
from aifx.hub import orbax
from aifx.hub.architectures import architectures, named_specs
from aifx.hub.exporting import export_model
from aifx.hub.importing import import_model
from aifx.hub.orbax import open_orbax
from aifx.loading.restore import restore_run
from aifx.models.decoder.specs import decoder_specs
from aifx.models.hub import HubConfig


@pytest.fixture
def llama(hub_models, tmp_path):
    """A function from the name of a case to its folder."""

    def folder(name: str) -> Path:
        stored, changes = orbax_models.CASES[name]
        return orbax_models.llama(tmp_path / name, hub_models(stored), changes)

    return folder


def imported(folder: Path, project: Project) -> RunDirectory:
    return project.run(import_model(str(folder), project).run)


def again(folder: Path, files: Path, project: Project, name: str = "again") -> RunDirectory:
    """The run of a checkpoint of Orbax; `files` has its config.json and tokenizer.json."""
    return project.run(import_model(open_orbax(str(folder), files / "config.json", files), project, name).run)


def digest_of(run: RunDirectory) -> str:
    return json.loads(run.events.read_text().splitlines()[-1])["state_digest"]


def logits_of(run: RunDirectory, project: Project) -> np.ndarray:
    return adapter_runs.logits_of(restore_run(run, project))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("is_scanned", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", orbax_models.CASES)
def test_arrays_of_maxtexts_layout(llama, name, is_scanned):
    """And back, without a file."""
    folder = llama(name)
    tensors, config = load_file(folder / "model.safetensors"), config_of(folder)
    family, architecture = architectures()["LlamaForCausalLM"]
    section = family.section(**architecture.read(HubConfig(config, "config.json", "")))
    specs = named_specs(decoder_specs(section, section.vocab_size, section.max_seq_len))
    arrays = {}
    for tensor in architecture.tensors(section):
        arrays |= dict(tensor.divide(tensors[tensor.key], specs))
    wanted = orbax_models.maxtext_of(tensors, config, is_scanned=is_scanned)
    written = list(orbax.in_maxtext(architecture, is_scanned=is_scanned).tensors(section))
    assert sorted(tensor.key for tensor in written) == sorted(wanted)
    back = {}
    for tensor in written:
        joined = tensor.join(arrays, specs)
        assert joined.shape == tensor.shape(specs)
        np.testing.assert_array_equal(joined, wanted[tensor.key], err_msg=tensor.key)
        back |= dict(tensor.divide(joined, specs))
    assert back.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_allclose(back[key], value, rtol=2**-22, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", orbax_models.CASES)
def test_what_maxtext_computes_of_the_arrays_is_what_aifx_computes(llama, empty_project, name):
    """By MaxText's formulas in NumPy."""
    folder = llama(name)
    config = config_of(folder)
    arrays = orbax_models.maxtext_of(load_file(folder / "model.safetensors"), config, is_scanned=False)
    theirs = orbax_models.maxtext_logits(arrays, config, peer_models.inputs())
    np.testing.assert_allclose(logits_of(imported(folder, empty_project), empty_project), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "is_scanned"),
    [
        pytest.param("interleaved", True, marks=pytest.mark.representative("a checkpoint of Orbax")),
        pytest.param("interleaved", False, marks=pytest.mark.slow),
        pytest.param("halves", True, marks=pytest.mark.slow),
        pytest.param("tied", False, marks=pytest.mark.slow),
    ],
)
def test_orbax_reads_what_was_exported_and_aifx_the_same_model(llama, empty_project, tmp_path, name, is_scanned):
    import orbax.checkpoint as ocp

    folder = llama(name)
    run = imported(folder, empty_project)
    made = export_model(tmp_path / "out", run, empty_project, scan_layers=is_scanned)
    assert (made.is_new, made.rounded) == (True, False)
    found = flat_names(ocp.PyTreeCheckpointer().restore(tmp_path / "out" / "items"))
    wanted = orbax_models.maxtext_of(load_file(folder / "model.safetensors"), config_of(folder), is_scanned=is_scanned)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    back = again(tmp_path / "out", tmp_path / "out", empty_project)
    assert (back.assets / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    np.testing.assert_allclose(logits_of(back, empty_project), logits_of(run, empty_project), rtol=0, atol=1e-5)
    if name != "tied":  # the root of its heads' width, 8, is no power of two: queries differ in their last bit
        assert digest_of(back) == digest_of(run)
    assert export_model(tmp_path / "out", run, empty_project, scan_layers=is_scanned).is_new is False
    with pytest.raises(AifxError, match="exists already") as refused:
        export_model(tmp_path / "out", run, empty_project, scan_layers=not is_scanned)
    assert "scan_layers" in refused.value.why


@pytest.mark.slow
def test_maxtext_restores_it_with_its_own_calls(llama, empty_project, tmp_path):
    """`load_params_from_path` of MaxText's `common/checkpointing.py`, on two devices' worth of shapes."""
    import orbax.checkpoint as ocp

    folder = llama("interleaved")
    export_model(tmp_path / "out", imported(folder, empty_project), empty_project, scan_layers=True)
    arrays = orbax_models.maxtext_of(load_file(folder / "model.safetensors"), config_of(folder), is_scanned=True)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = nest({key.removeprefix("params/"): value for key, value in arrays.items()})
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    restored = checkpointer.restore(
        tmp_path / "out" / "items",
        item={"params": wanted},
        transforms={},
        restore_args={"params": restore_args},
    )
    for key, value in flat_names(restored["params"]).items():
        np.testing.assert_array_equal(value, arrays[f"params/{key}"], err_msg=key)


def write_training(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """A checkpoint as a training of MaxText leaves it, by a manager: with an optimizer's state and a second item."""
    import orbax.checkpoint as ocp

    moments = {key.replace("params/", "opt_state/mu/", 1): np.full_like(value, np.nan) for key, value in arrays.items()}
    tree = {**nest(arrays | moments), "step": np.int32(1000), "empty": {}}
    with ocp.CheckpointManager(folder, item_names=("items", "iter")) as manager:
        items = ocp.args.Composite(items=ocp.args.PyTreeSave(tree), iter=ocp.args.JsonSave({"batch": 7}))
        manager.save(1000, args=items)


@pytest.mark.slow
def test_a_training_of_maxtext_is_imported_without_its_optimizer(llama, empty_project, tmp_path):
    folder = llama("halves")
    arrays = orbax_models.maxtext_of(load_file(folder / "model.safetensors"), config_of(folder), is_scanned=True)
    write_training(tmp_path / "checkpoints", arrays)
    first = again(tmp_path / "checkpoints" / "1000", folder, empty_project)
    assert digest_of(first) == digest_of(imported(folder, empty_project))
    second = again(tmp_path / "checkpoints" / "1000" / "items", folder, empty_project, "second")
    assert digest_of(second) == digest_of(first)
    same = import_model(
        open_orbax(str(tmp_path / "checkpoints/1000"), folder / "config.json", folder), empty_project, "again"
    )
    assert not same.is_new
    with pytest.raises(AifxError) as refused:
        again(tmp_path / "checkpoints", folder, empty_project)
    assert refused.value.hint == f"aifx ckpt show {tmp_path}/checkpoints/1000"


@pytest.mark.slow
def test_each_damage_and_misfit_is_named(llama, empty_project, tmp_path):
    folder = llama("halves")
    config = config_of(folder)
    arrays = orbax_models.maxtext_of(load_file(folder / "model.safetensors"), config, is_scanned=True)
    norm = "params/params/decoder/decoder_norm/scale"
    key = "params/params/decoder/layers/mlp/wo/kernel"

    def refused(name: str, changed: dict[str, np.ndarray], lacking: str = "", **values: object) -> str:
        there = {name: value for name, value in (arrays | changed).items() if name != lacking}
        save_orbax(tmp_path / name, there, {})
        shutil.copytree(folder, tmp_path / f"{name}-files")
        (tmp_path / f"{name}-files" / "config.json").write_text(json.dumps(config | values))
        with pytest.raises(AifxError) as caught:
            again(tmp_path / name, tmp_path / f"{name}-files", empty_project)
        assert not list(empty_project.root.glob("runs/*"))
        return f"{caught.value.what}\n{caught.value.why}\n{caught.value.hint}"

    wide, extra = np.ones((40, 3, 16), np.float32), key.replace("wo/kernel", "wo/bias")
    scaled = {**orbax_models.SCALED, "factor": 32.0}
    cases: dict[str, tuple[dict[str, np.ndarray], str, dict[str, object], tuple[str, ...]]] = {
        "lacking": ({}, norm, {}, (norm, "aifx ckpt show")),
        "shape": ({key: wide}, "", {}, (key, "[40, 3, 16]", "[40, 2, 16]")),
        "nan": ({norm: np.full(16, np.nan, np.float32)}, "", {}, (norm,)),
        "quantized": ({key: np.ones((40, 2, 16), np.int8)}, "", {}, (key, "int8")),
        "extra": ({extra: np.ones((40, 2), np.float32)}, "", {}, (extra,)),
        "no-layers": ({}, "", {"num_hidden_layers": None}, ("num_hidden_layers",)),
        "more-layers": ({}, "", {"num_hidden_layers": 3}, ("[16, 2]", "[16, 3]")),
        "factor": ({}, "", {"rope_parameters": scaled}, ("rope_factor = 32", "8")),
        "biased": ({}, "", {"attention_bias": True}, ("attention_bias",)),
        "other": ({}, "", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, ("Qwen2ForCausalLM",)),
    }
    for name, (changed, lacking, values, facts) in cases.items():
        text = refused(name, changed, lacking, **values)
        assert all(fact in text for fact in facts), text
    nnx = {name.replace("params/params/", "model/"): value for name, value in arrays.items()}
    save_orbax(tmp_path / "nnx", nnx, {})
    with pytest.raises(AifxError, match="no model in MaxText's layout"):
        again(tmp_path / "nnx", folder, empty_project)


@pytest.mark.slow
def test_adapters_are_merged(llama, empty_project, tmp_path):
    adapted = adapter_runs.make_adapter_run(empty_project, imported(llama("interleaved"), empty_project))
    with pytest.raises(UsageError, match="adapters"):
        export_model(tmp_path / "out", adapted, empty_project, scan_layers=True)
    made = export_model(tmp_path / "out", adapted, empty_project, scan_layers=True, merge=True)
    assert made.merged.passed
    merged = again(tmp_path / "out", tmp_path / "out", empty_project)
    np.testing.assert_allclose(logits_of(merged, empty_project), logits_of(adapted, empty_project), rtol=0, atol=5e-4)


@pytest.mark.slow
def test_queries_are_rounded_once(llama, empty_project, tmp_path):
    folder = llama("tied")  # the root of its heads' width is no power of two
    made = export_model(
        tmp_path / "out", imported(folder, empty_project), empty_project, dtype="bfloat16", scan_layers=False
    )
    assert (made.dtype, made.rounded) == ("bfloat16", True)
    (item,) = read_orbax(tmp_path / "out").items
    assert {array.dtype for array in item.arrays} == {"bfloat16"}
    wanted = orbax_models.maxtext_of(load_file(folder / "model.safetensors"), config_of(folder), is_scanned=False)
    for key, value in restore_orbax(item, list(wanted)).items():
        np.testing.assert_array_equal(value, wanted[key].astype(value.dtype), err_msg=key)
    back = import_model(
        open_orbax(str(tmp_path / "out"), tmp_path / "out/config.json", tmp_path / "out"), empty_project, "b"
    )
    assert (back.dtype, back.rounded) == ("bfloat16", False)


@pytest.mark.slow
def test_what_changes_after_the_export_is_named(llama, empty_project, tmp_path):
    folder = llama("halves")
    run = imported(folder, empty_project)
    out, key = tmp_path / "out", "params/params/decoder/layers/mlp/wo/kernel"
    export_model(out, run, empty_project, scan_layers=True)
    (item,) = read_orbax(out).items
    arrays = restore_orbax(item, [array.name for array in item.arrays])
    arrays[key][0, 0, 0] += 1
    save_orbax(tmp_path / "changed", arrays, item.metadata)
    with pytest.raises(AifxError) as refused:
        again(tmp_path / "changed", out, empty_project)
    assert key in refused.value.why
    file = max((path for path in (out / "items").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes() + b"0")
    with pytest.raises(AifxError, match="exists already") as refused:
        export_model(out, run, empty_project, scan_layers=True)
    assert str(file.relative_to(out)) in refused.value.why
    for source in (out, out / "items"):
        with pytest.raises(DataError) as damaged:
            again(source, folder, empty_project, "damaged")
        assert str(file.relative_to(out)) in damaged.value.why


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("qwen3", "model.qk_norm"),
        ("llama-linear-biased", "attention_bias"),
        ("llama-yarn", "rope_scaling"),
        ("llama", "rope_original_len"),
    ],
)
def test_a_model_that_maxtexts_llama_does_not_compute_is_refused(hub_models, empty_project, tmp_path, name, fact):
    run = imported(hub_models(name), empty_project)
    with pytest.raises(ConfigError) as refused:
        export_model(tmp_path / "out", run, empty_project, scan_layers=True)
    assert fact in f"{refused.value.what} {refused.value.why}"
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_belong_together(hub_models, empty_project, tmp_path):
    imported(hub_models("llama"), empty_project)

    def refused(*words: str) -> dict:
        done = inprocess.run([*words, "--json"], empty_project.root, {**os.environ})
        assert done.returncode == 2, done.stderr
        return json.loads(done.stdout)["error"]

    assert "--no-scan-layers" in refused("export", "../out", "--no-scan-layers")["what"]
    assert "--config" in refused("import", "x", "--config", "c.json")["what"]
    lacking = refused("import", "x", "--format", "orbax", "--config", "c.json")
    assert "--tokenizer" in lacking["what"]
    assert lacking["hint"] == "aifx import x --format orbax --config c.json --tokenizer FILE"
    files = ["--config", str(tmp_path / "none.json"), "--tokenizer", str(hub_models("llama"))]
    assert "none.json" in refused("import", "x", "--format", "orbax", *files)["what"]
    assert "--check" in refused("import", "x", "--format", "orbax", *files, "--check")["what"]
    assert "gguf" in refused("import", "x", "--format", "gguf")["what"]
