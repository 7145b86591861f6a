"""Imported image models compute what transformers computes, and begin a run for other classes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import inprocess
import jax
import numpy as np
import peer_pictures
import pytest
from picture_runs import assert_same_logits
from PIL import Image
from safetensors.numpy import load_file, save_file

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import AifxError, ExitCode
from aifx.core.project import Project
from aifx.hub.importing import import_model
from aifx.hub.starting import start_project
from aifx.kinds import read_config
from aifx.loading.restore import restore_run
from aifx.tasks.registry import load_task

# Of an architecture, others differ in one setting.
VARIANTS = ("vit-one-layer-grey", "resnet-bottleneck-early-grey")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.representative("a model in and out")) if name in VARIANTS else name
        for name in peer_pictures.FIXED
    ],
)
def test_logits_are_those_of_transformers(name, picture_models, empty_project):
    made = assert_same_logits(picture_models(name), empty_project)
    assert made.task == "vision"
    run = empty_project.run(made.run)
    config = read_config(run.config, empty_project)
    assert config.data.classes == ("crane", "dent", "crane (2)", "scratch, deep")
    ignored = json.loads(run.imported.read_text())["ignored"]
    assert all(key.endswith("num_batches_tracked") for key in ignored)
    assert bool(ignored) == (config.model.family == "resnet")


def test_statistics_are_not_rounded(picture_models, empty_project):
    made = import_model(str(picture_models("resnet-basic")), empty_project, dtype="bfloat16")
    assert (made.dtype, made.rounded) == ("bfloat16", True)
    trained = restore_run(empty_project.run(made.run), empty_project)
    stem = trained.params["stem"]
    assert stem["kernel"].dtype == "bfloat16"
    want = peer_pictures.values_of("resnet.embedder.embedder.normalization.running_var", (4,))
    np.testing.assert_array_equal(stem["norm"]["variance"], want)


@pytest.fixture
def photographs(empty_project: Project) -> Project:
    """A project with two classes of pictures, which differ in brightness."""
    rng = np.random.default_rng(0)
    for label, brightness in (("dark", 20), ("light", 160)):
        folder = empty_project.root / "photographs" / label
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = brightness + rng.integers(0, 80, (14, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return empty_project


def fine_tuned(folder: Path, project: Project, **changes: str) -> dict[str, Any]:
    """The report of `aifx eval` after a fine-tuning of the model in a folder, which becomes the run "base"."""

    def aifx(*args: str) -> str:
        done = inprocess.run(args, project.root, {**os.environ})
        assert done.returncode == 0, done.stderr
        return done.stdout

    aifx("import", str(folder), "--name", "base")
    start_project(project, project.run("base"))
    settings = {
        "data.path": "photographs",
        "data.test_fraction": "0.3",
        "train.num_steps": "30",
        "train.global_batch_size": "8",
        "train.validate_every": "0",
        "optimizer.learning_rate": "0.03",
        "data.workers": "0",
        **changes,
    }
    aifx("train", *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))
    return json.loads(aifx("eval", "--json"))


def arrays_of(project: Project, run: str, step: int) -> dict[str, np.ndarray]:
    """Without those of the head."""
    folder = project.run(run).checkpoints
    names = read_manifest(folder / str(step)).arrays
    wanted = {
        name: jax.ShapeDtypeStruct(entry.shape, entry.dtype)
        for name, entry in names.items()
        if name.startswith("params/") and not name.startswith("params/output/")
    }
    checkpoints = Checkpoints(folder, read_config(project.run(run).config, project).checkpoint)
    return {name: np.asarray(array) for name, array in checkpoints.read(step, wanted).items()}


@pytest.mark.slow
def test_from_a_model_to_an_evaluated_one_of_other_classes(picture_models, photographs):
    """The head alone is trained: it tells apart what the imported features show."""
    report = fine_tuned(picture_models("vit-one-layer-grey"), photographs)
    assert report["metrics"]["accuracy"] == 1.0
    assert (photographs.root / "aifx.toml").read_text().count('freeze = "backbone"') == 1
    before, after = arrays_of(photographs, "base", 0), arrays_of(photographs, "main", 30)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_stored_statistics_stay_when_all_weights_are_trained(picture_models, photographs):
    fine_tuned(picture_models("resnet-basic"), photographs, **{"finetune.freeze": "none", "train.num_steps": "2"})
    before, after = arrays_of(photographs, "base", 0), arrays_of(photographs, "main", 2)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "norm/" not in name and "_norm" not in name}


def config(**values):
    return "config.json", values


def preprocessor(**values):
    return "preprocessor_config.json", values


REFUSED = {
    "activation": ("vit", config(hidden_act="gelu_new"), "hidden_act = 'gelu_new'"),
    "no biases": ("vit", config(qkv_bias=False), "qkv_bias = False"),
    "unknown key": ("vit", config(layer_scale=0.1), "layer_scale = 0.1"),
    "too many layers": ("vit", config(num_hidden_layers=2**31), "num_hidden_layers = 2147483648"),
    "another image size": ("vit", config(image_size=16), "image_size = 16"),
    "one number to predict": ("vit", config(problem_type="regression"), "problem_type = 'regression'"),
    "class without a number": ("vit", config(id2label={"0": "a", "2": "b"}), "id2label = "),
    "class without a name": ("vit", config(id2label={"0": "a", "1": 7}), "id2label = "),
    "classes that the weights lack": ("vit", config(id2label={"0": "a", "1": "b"}), r"classifier.weight is \[4, 16\]"),
    "a patch that does not fit": ("vit", config(patch_size=5), "patches of model.patch_size = 5"),
    "an early stride": ("resnet-basic", config(downsample_in_first_stage=True), "downsample_in_first_stage = True"),
    "another block": ("resnet-basic", config(layer_type="wide"), "layer_type = 'wide'"),
    "another rectifier": ("resnet-basic", config(hidden_act="silu"), "hidden_act = 'silu'"),
    "a stem of another width": ("resnet-basic", config(embedding_size=8), "embedding_size = 8"),
    "a stage without a width": ("resnet-basic", config(hidden_sizes=[4, 0]), r"hidden_sizes = \[4, 0\]"),
    "a bottleneck of no width": ("resnet-bottleneck", config(hidden_sizes=[16, 24, 42]), "hidden_sizes = "),
    "blocks that the weights lack": ("resnet-basic", config(depths=[1, 9000]), r"no tensor resnet\.encoder\.stages\.1"),
    "means of other channels": ("vit", preprocessor(image_mean=[0.5]), r"image_mean = \[0\.5\]"),
    "no deviation": ("vit", preprocessor(image_std=[0.5, 0.5, 0]), r"image_std = "),
    "no mean": ("vit", preprocessor(image_mean=None), "image_mean = None"),
    "no scale": ("vit", preprocessor(rescale_factor=0), "rescale_factor = 0"),
    "blue first": ("vit", preprocessor(do_flip_channel_order=True), "do_flip_channel_order = True"),
    "no size": ("vit", preprocessor(size={"longest_edge": 12}), "size = "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_nothing_is_written(case, picture_models, tmp_path, empty_project):
    name, (file, values), place = REFUSED[case]
    folder = shutil.copytree(picture_models(name), tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(AifxError, match=place) as caught:
        import_model(str(folder), empty_project)
    assert caught.value.exit_code == ExitCode.UNABLE
    assert caught.value.hint
    assert [path.name for path in empty_project.root.iterdir()] == ["aifx.toml"]


def test_a_folder_without_its_preprocessor_is_refused(picture_models, tmp_path, empty_project):
    folder = shutil.copytree(picture_models("vit"), tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(AifxError, match=r"no preprocessor_config\.json"):
        import_model(str(folder), empty_project)


def test_counters_are_no_weights(picture_models, tmp_path, empty_project):
    """Batch norm's are int64 and ignored. Another scalar is a tensor that the model does not use."""
    folder = shutil.copytree(picture_models("resnet-basic"), tmp_path / "model")
    found = load_file(folder / "model.safetensors")
    save_file({**found, "resnet.steps": np.array(3, np.int64)}, folder / "model.safetensors")
    with pytest.raises(AifxError, match=r"tensor resnet\.steps"):
        import_model(str(folder), empty_project)


@pytest.mark.parametrize(
    ("size", "fit", "sides"),
    [
        (12, "stretch", (12, 12)),
        ({"height": 12, "width": 12}, "stretch", (12, 12)),
        ({"shortest_edge": 12}, "crop", (12, 12)),
    ],
)
def test_sizes_and_several_classes_for_a_picture(size, fit, sides, picture_models, tmp_path, empty_project):
    folder = shutil.copytree(picture_models("vit"), tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": size}))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": "multi_label_classification"}))
    run = empty_project.run(import_model(str(folder), empty_project).run)
    read = read_config(run.config, empty_project)
    assert (read.data.fit, read.data.image_size, read.objective.kind) == (fit, sides, "multilabel")
    assert load_task(read, empty_project, run.assets).data.fields["targets"].shape == (4,)
