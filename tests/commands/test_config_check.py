"""`aifx config check`, `keys` and `schema` with files, gates, a project's own task, and the words of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from published_schemas import check_answer

from aifx.commands.main import run
from aifx.config import model_differences
from aifx.config.config import SECTION_NAMES
from aifx.config.foreign_keys import _KEYS, FOREIGN_KEYS, FOREIGN_SECTIONS
from aifx.config.gates import scalars
from aifx.config.parts import resolve
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.data.spec import DataSpec
from aifx.kinds import KINDS, load_config
from aifx.objectives import OBJECTIVES
from aifx.objectives.base import Rows
from aifx.training.prepare import find_base

TASK = """
from aifx.config.sections import DataSection, ModelSection

class Model(ModelSection):
    width: int = 8

class Data(DataSection):
    path: str = "x.csv"

class Own:
    model_section = Model
    data_section = Data
    metric_names = ("loss", "error")
"""


class Here:
    """Commands in a project, in this process."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys

    def write(self, toml: str) -> None:
        (self.root / "aifx.toml").write_text(toml)

    def __call__(self, *args: str, code: int = 0) -> tuple[str, str]:
        self._capsys.readouterr()
        ended = run(list(args))
        out, err = self._capsys.readouterr()
        assert ended == code, err
        check_answer(args, out)
        return out, err


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("text")
    project = Here(tmp_path, capsys)
    project.write("")
    return project


def test_check_lists_missing_files_and_unknown_metrics_at_once(here: Here) -> None:
    here("config", "check")
    here.write(
        '[data]\ntrain = ["data/*.txt", "corpus/*.jsonl"]\ntest = ["none.txt"]\ntokenizer = "tok.json"\n'
        '[eval]\ngates = ["bits_per_byte <= 2", "acuracy >= 0.5"]\n'
    )
    _, err = here("config", "check", code=2)
    for words in (
        "aifx.toml:2: no file matches 'corpus/*.jsonl' of data.train",
        "aifx.toml:3: no file 'none.txt', which data.test names",
        "aifx.toml:4: no file 'tok.json', which data.tokenizer names",
        "aifx.toml:6: gate 'acuracy >= 0.5': there is no metric 'acuracy'",
    ):
        assert words in err, words
    assert "bits_per_byte <= 2" not in err
    out, _ = here("config", "check", "--json", code=2)
    assert json.loads(out)["error"]["exit_code"] == 2


def test_check_warns_of_a_warm_up_that_is_shortened(here: Here) -> None:
    here.write("[train]\nnum_steps = 10\n[schedule]\nwarmup_steps = 11\n")
    _, err = here("config", "check")
    assert "schedule.warmup_steps = 11" in err
    assert "5 steps" in err


BASE_MODEL = "[model]\nrope_theta = 500000.0\nnorm_epsilon = 1e-6\nwindows = [64, 0]\n"


@pytest.fixture
def based(here: Here) -> Here:
    """A project whose run "base" has the model BASE_MODEL."""
    here.write(BASE_MODEL)
    run = Project(here.root).run("base")
    run.path.mkdir(parents=True)
    run.config.write_text(load_config(Project(here.root), environ={}).to_toml())
    return here


def tuned(model: str) -> str:
    return f'[finetune]\nbase = "base"\n{model}'


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (
            ("500000.0", "10000.0"),
            ["aifx.toml:4: model.rope_theta = 10000.0", "run base has 500000.0", "rope_theta = 500000.0"],
        ),
        (("norm_epsilon = 1e-6\n", ""), ["model.norm_epsilon = 1e-05", "run base has 1e-06", "norm_epsilon = 1e-06"]),
        (("[64, 0]", "[64]"), ["aifx.toml:6: model.windows = [64]", "run base has [64, 0]", "windows = [64, 0]"]),
        (
            ("windows", "logit_softcap = 30.0\nwindows"),
            ["model.logit_softcap = 30.0", "run base does not", "remove logit_softcap"],
        ),
        (("[model]", "[model]\nnum_heads = 2"), ["model.num_heads = 2", "run base has 4", "num_heads = 4"]),
    ],
)
def test_a_model_that_computes_something_else_than_its_base_is_refused(
    change: tuple[str, str], facts: list[str], based: Here
) -> None:
    based.write(tuned(BASE_MODEL.replace(*change)))
    _, err = based("config", "check", code=2)
    assert [fact for fact in facts if fact not in err] == []
    with pytest.raises(ConfigError) as refused:  # when it is trained, before a checkpoint is read
        find_base(load_config(Project(based.root), environ={}), Project(based.root), Project(based.root).run("fine"))
    assert "run base" in refused.value.what
    assert facts[0] in refused.value.why
    assert facts[2] in refused.value.hint


def test_a_model_that_computes_the_same_as_its_base_is_accepted(based: Here) -> None:
    of_training = 'dropout = 0.1\nremat = "full"\nmax_seq_len = 4096\n'
    spelled_out = "mlp_dim = 512\nhead_dim = 32\nnum_kv_heads = 4\nrope_factor = 2.0\n"  # rope_scaling is "none"
    based.write(tuned(f"{BASE_MODEL}{of_training}{spelled_out}"))
    based("config", "check")


@pytest.mark.parametrize(
    ("settings", "changes", "keys"),
    [
        ([], ["model.mlp_dim=512", "model.qk_norm_over=heads", "model.rope_beta_fast=16.0", "model.dropout=0.1"], []),
        (["model.positions=learned"], ["model.rope_theta=5.0", "model.rope_scaling=linear"], []),
        (["model.rope_scaling=linear"], ["model.rope_factor=2.0", "model.rope_beta_fast=9.0"], ["rope_factor"]),
        (["model.qk_norm=true"], ["model.qk_norm_over=heads"], ["qk_norm_over"]),
        ([], ["model.rope_window_theta=5.0"], []),
        (["model.windows=[8]"], ["model.rope_window_theta=5.0"], ["rope_window_theta"]),
        (["task.kind=vision"], ["model.blocks_per_stage=[1,1]", "model.dropout=0.1"], []),
        (["task.kind=vision"], ["model.pooling=max", "model.local_contrast=3"], ["local_contrast", "pooling"]),
        (["task.kind=vision", "model.family=vit"], ["model.mlp_dim=512", "model.remat=full"], []),
        (["task.kind=vision", "model.family=vit"], ["model.norm_epsilon=1e-5"], ["norm_epsilon"]),
        (["task.kind=vision"], ["model.family=vit"], []),
    ],
)
def test_the_keys_by_which_models_compute_different_things(
    settings: list[str], changes: list[str], keys: list[str], here: Here
) -> None:
    theirs, ours = (load_config(Project(here.root), found, {}) for found in (settings, [*settings, *changes]))
    assert [d.key for d in model_differences(theirs.model, ours.model)] == [f"model.{key}" for key in keys]


def test_check_of_images_knows_classes(here: Here) -> None:
    images = (
        '[task]\nkind = "vision"\n[data]\npath = "data/images.npz"\n{}[eval]\ngates = ["per_class.{}.recall > 0"]\n'
    )
    np.savez(here.root / "data/images.npz", x=np.zeros(1))
    here.write(images.format('classes = ["Shirt", "Bag"]\n', "Bag"))
    here("config", "check")
    here.write(images.format('classes = ["Shirt", "Bag"]\n', "Bog"))
    assert "did you mean 'per_class.Bag.recall'" in here("config", "check", code=2)[1]
    here.write(images.format("", "scratch.deep"))  # the data names its classes
    here("config", "check")
    here.write(images.format("", "7").replace("recall", "reccall"))
    assert "metric 'per_class.7.reccall'" in here("config", "check", code=2)[1]
    here.write(images.format("", "7"))
    here("config", "check")
    (here.root / "data/images.npz").rename(here.root / "data/others.npz")
    assert "there is others.npz" in here("config", "check", code=2)[1]


RULES = '[data]\ntrain = ["data/a.txt"]\nvocab_size = 300\n[mesh]\ntensor = 2\n'


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (
            'parameters = ["mlp = tensr"]\ncomputation = ["heds ="]',
            ("aifx.toml:6: mesh.parameters: 'mlp = tensr' is no rule", "aifx.toml:7: mesh.computation: 'heds ='"),
        ),
        ('computation = ["mlp ="]', ("aifx.toml:6: the rules divide a layer over different mesh axes", "mlp: none")),
        (
            'computation = ["batch = data fsdp tensor"]\nparameters = ["embed ="]',
            ("aifx.toml:6: the rules divide both 'batch' and 'tokens' over mesh.tensor",),
        ),
        (
            'computation = ["seq ="]\nparameters = ["mlp ="]',
            ("aifx.toml:7: the rules divide 'mlp' over mesh.tensor in the computation, and not among the parameters",),
        ),
        ('computation = ["seq = data"]', ("both 'batch' and 'seq' over mesh.data",)),
        ('parameters = ["embed = fsdp tensor"]', ("both 'embed' and 'kv_heads' of one array over mesh.tensor",)),
    ],
)
def test_check_finds_wrong_rules_of_the_mesh(here: Here, rules: str, named: tuple[str, ...]) -> None:
    """As training does on several devices."""
    here.write(RULES + rules)
    _, err = here("config", "check", code=2)
    for words in named:
        assert words in err, words


def test_check_passes_right_rules_of_the_mesh(here: Here) -> None:
    for rules in ('parameters = ["embed ="]', 'parameters = ["mlp ="]\ncomputation = ["mlp ="]'):
        here.write(RULES.replace("tensor = 2", "fsdp = 2") + rules)
        here("config", "check")


def test_the_metrics_that_check_knows_are_those_of_the_objectives() -> None:
    one, data = (1.0, 1.0), DataSpec({}, classes=("a",))
    logits, labels = Rows(np.ones((2, 1)), np.ones(2)), Rows(np.zeros(2, int), np.ones(2))  # type: ignore[arg-type]
    totals: dict[str, dict[str, Any]] = {
        "next-token": {"loss": one, "bytes": one},
        "sft": {"loss": one},
        "dpo": dict.fromkeys(("loss", "accuracy", "margin", "chosen", "rejected"), one),
        "classification": {"loss": one, "logits": logits, "labels": labels},
        "multilabel": {"loss": one, "logits": logits, "labels": logits},
        "regression": {"loss": one, "mean_absolute_error": one, "examples": one},
        "quantile": dict.fromkeys(("loss", "mape", "mean_absolute_error", "coverage", "examples"), one),
    }
    for name, kind in OBJECTIVES.items():
        objective = resolve(kind.make)(kind.section())
        known = {*kind.metrics, *(f"per_class.a.{metric}" for metric in kind.class_metrics)}
        assert set(scalars(objective.metrics(totals[name], data))) == known


def test_keys_and_schema_include_the_projects_own_task(here: Here) -> None:
    (here.root / "own_task_of_keys.py").write_text(TASK + "print('the task ran')\n")
    here.write('[task]\nkind = "own_task_of_keys:Own"\n[model]\nwidth = 3\n[eval]\ngates = ["eror < 1"]\n')
    out, _ = here("config", "keys", "model")
    assert "model.width (own_task_of_keys:Own) = 8" in out
    assert "the task ran" not in out
    schema = jsonschema.Draft202012Validator(json.loads(here("config", "schema")[0]))
    schema.check_schema(schema.schema)
    own = {"task": {"kind": "own_task_of_keys:Own"}}
    schema.validate({**own, "model": {"width": 3}})
    assert not schema.is_valid({**own, "model": {"widht": 3}})
    schema.validate({"model": {"num_layers": 3}})
    assert "did you mean 'error'?" in here("config", "check", code=2)[1]


def test_keys_without_a_task_that_cannot_be_imported(here: Here) -> None:
    here.write('[task]\nkind = "nothing_here:Own"\n')
    out, err = here("config", "keys", "--json")
    assert any((key["section"], key["key"]) == ("model", "num_layers") for key in json.loads(out)["keys"])
    assert "nothing_here" in err
    here.write("[task\n")
    assert json.loads(here("config", "schema")[0])["title"] == "aifx.toml"


@pytest.mark.parametrize(
    ("toml", "overrides", "ours"),
    [
        ("[train]\nlr = 1", [], "optimizer.learning_rate"),
        ("[optimizer]\nlr = 1", [], "optimizer.learning_rate"),
        ("lr = 1", [], "optimizer.learning_rate"),
        ("[train]\nepochs = 1", [], "train.num_steps? It counts steps: epochs x"),
        ("[data]\nbatch_size = 1", [], "train.global_batch_size"),
        ("[train]\nn-layer = 1", [], "model.num_layers"),
        ("[model]\nn_layer = 1", [], "model.num_layers"),
        ("[generate]\nmax_length = 1", [], "generate.max_tokens"),
        ("[trainer]\nmax_epochs = 1", [], "'train'? Its max_epochs is train.num_steps"),
        ("", ["lr=1"], "optimizer.learning_rate"),
        ("", ["train.n_head=1"], "model.num_heads"),
        ("", ["trainer.max_steps=1"], "train.num_steps"),
        ("", ["training.seed=1"], "train.seed"),
    ],
)
def test_keys_of_other_tools_are_answered_with_ours(here: Here, toml: str, overrides: list[str], ours: str) -> None:
    here.write(toml)
    with pytest.raises(ConfigError) as caught:
        load_config(Project(here.root), overrides, {})
    assert f"did you mean {ours}" in str(caught.value)


def test_no_key_is_suggested_that_the_task_lacks(here: Here) -> None:
    here.write('[task]\nkind = "vision"\n[train]\nn_layer = 1')
    with pytest.raises(ConfigError) as caught:
        load_config(Project(here.root), [], {})
    assert "num_layers" not in str(caught.value)


def test_the_table_of_other_tools_names_keys_that_exist() -> None:
    known = KINDS.full_keys()
    assert set(_KEYS) - known == set()
    assert len(FOREIGN_KEYS) == sum(len(names.split()) for names in _KEYS.values()), "a name is there twice"
    assert not {f"{ours.partition('.')[0]}.{name}" for name, ours in FOREIGN_KEYS.items()} & known
    assert set(FOREIGN_SECTIONS.values()) <= set(SECTION_NAMES)
    assert not set(FOREIGN_SECTIONS) & set(SECTION_NAMES)


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--run", ""],
        ["train", "--fork", ""],
        ["eval", "--run", ""],
        ["runs", "show", ""],
        ["ckpt", "ls", "--run", ""],
    ],
)
def test_an_empty_name_of_a_run_is_refused(here: Here, args: list[str]) -> None:
    assert "''" in here(*args, code=2)[1]
    assert not (here.root / "runs").exists()
