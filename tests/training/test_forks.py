"""Forks: where they begin, what they take over, and what they cannot change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tokenizers

import aifx
from aifx.core.errors import AifxError, CheckpointError, ConfigError, UsageError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.training.records import TrainResult
from aifx.training.run import train

TEXT = "".join(
    f"{i}. It was the whiteness of the whale that above all things appalled me. {i * 7919 % 1000}\n" for i in range(300)
)
TOML = """\
[data]
vocab_size = 300
seq_len = 32
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[train]
num_steps = 2
global_batch_size = 4
validate_every = 0
"""


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of two steps, whose tokenizer was trained."""
    root = tmp_path_factory.mktemp("forks")
    (root / "data").mkdir()
    (root / "data/whale.txt").write_text(TEXT)
    (root / "aifx.toml").write_text(TOML)
    train(Project(root), load_config(Project(root), [], {}), "main")
    return root


@pytest.fixture
def project(language_model: Path, tmp_path: Path) -> Project:
    shutil.copytree(language_model, tmp_path / "project")
    return Project(tmp_path / "project")


def fork(project: Project, *settings: str, origin: str = "main", name: str = "fork") -> TrainResult:
    config = load_config(project, ["train.num_steps=3", *settings], {})
    return train(project, config, name, fork_from=origin)


def refused(project: Project, *settings: str, origin: str = "main") -> AifxError:
    with pytest.raises((ConfigError, CheckpointError)) as error:
        fork(project, *settings, origin=origin, name="refused")
    assert not project.run("refused").exists()
    assert "aifx train --run NAME" in error.value.hint
    assert repr(origin) in error.value.what
    return error.value


@pytest.mark.slow
def test_another_tokenizer_is_refused(project: Project) -> None:
    error = refused(project, "data.vocab_size=400")
    assert "tokenizer" in error.what
    assert "300 -> 400" in error.why
    shutil.copy(project.run("main").assets / "tokenizer.json", project.root / "own.json")
    assert '"bpe" -> "own.json"' in refused(project, "data.tokenizer=own.json").why


@pytest.mark.slow
def test_a_tokenizer_that_was_brought_and_has_changed_is_refused(project: Project) -> None:
    own = project.root / "own.json"
    shutil.copy(project.run("main").assets / "tokenizer.json", own)
    train(project, load_config(project, ["data.tokenizer=own.json"], {}), "brought")
    result = fork(project, "data.tokenizer=own.json", origin="brought")
    assert result.status == "completed"
    tokenizer = tokenizers.Tokenizer.from_file(str(own))
    tokenizer.add_tokens(["whiteness"])
    tokenizer.save(str(own))
    error = refused(project, "data.tokenizer=own.json", origin="brought")
    assert "own.json has changed" in error.why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("model.embed_dim=32", "model.embed_dim = 16 -> 32"),
        ("model.num_layers=2", "model.num_layers = 1 -> 2"),
        ("model.vocab_size=512", "model.vocab_size = null -> 512"),
        ("model.tie_embeddings=false", "model.tie_embeddings = true -> false"),
        ("model.rope_theta=500000.0", "model.rope_theta = 10000.0 -> 500000.0"),
        ("model.windows=[8]", "model.windows = [] -> [8]"),
    ],
)
def test_another_model_is_refused_by_the_key_that_changed(project: Project, setting: str, change: str) -> None:
    error = refused(project, setting)
    assert "another model" in error.what
    assert change in error.why
    assert ("params/" in error.why) == ("vocab_size" in setting), "only what the checkpoint shows is read from it"


@pytest.mark.slow
def test_what_training_alone_reads_may_change(project: Project) -> None:
    same = ("model.dropout=0.1", "model.max_seq_len=64", "model.head_dim=8", "model.remat=full")
    assert fork(project, *same).status == "completed"


@pytest.mark.slow
def test_other_text_keeps_the_tokenizer(project: Project) -> None:
    (project.root / "data/other.txt").write_text(TEXT.replace("whale", "ship"))
    assert fork(project, 'data.train=["data/other.txt"]').status == "completed"
    kept, taken = (project.run(name).assets / "tokenizer.json" for name in ("main", "fork"))
    assert kept.read_bytes() == taken.read_bytes()


@pytest.mark.slow  # pays for the origin, which only slow tests share with it
def test_text_that_the_origin_may_have_learnt_is_told(project: Project, logged: list[str]) -> None:

    def fork_to(name: str, *settings: str) -> None:
        config = load_config(project, ["train.num_steps=3", *settings], {})
        train(project, config, name, fork_from="main")

    fork_to("same")
    assert not any("learnt" in text for text in logged)
    fork_to("divided", "data.test_fraction=0.3")
    assert any("run main" in text and "held out" in text for text in logged)


@pytest.mark.slow
def test_where_a_fork_begins(trained) -> None:
    best = trained.train("train.num_steps=20", run="best", fork_from="main", fork_at="best")
    eighth = trained.train("train.num_steps=20", run="eighth", fork_from="main", fork_at=8)
    assert (best.resumed_from, eighth.resumed_from) == (12, 8)
    with pytest.raises(CheckpointError, match="4, 8, 12"):
        trained.train("train.num_steps=20", run="ninth", fork_from="main", fork_at=9)


def test_a_fork_that_was_cut_off_is_not_mixed_with_another(trained) -> None:
    shutil.copytree(trained.run().checkpoints / "12", trained.run("fork").checkpoints / "12")  # and no config.toml yet
    with pytest.raises(UsageError, match="step 12"):
        trained.train("train.num_steps=20", run="fork", fork_from="main", fork_at=8)
    assert trained.train("train.num_steps=20", run="fork", fork_from="main").resumed_from == 12


def test_a_step_is_for_forks(trained) -> None:
    code, _, err = trained.command("train", "--step", "4")
    assert code == 2
    assert "--run main --fork NAME --step 4" in err
    assert aifx.train(trained.root, fork_at="last").already, "the default"
    code, out, err = trained.command(
        "train", "--fork", "longer", "--step", "4", "--set", "train.num_steps=20", "--json"
    )
    assert code == 0, err
    assert '"resumed_from": 4' in out
