"""`aifx kernels`: from nothing measured to winners and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from published_schemas import check_document

from aifx.commands.main import run
from aifx.core.project import find_project
from aifx.kernels.choice import project_calls
from aifx.kinds import load_config
from jax_kernels._ops.attention import ATTENTION
from jax_kernels.implementations import current_device
from jax_kernels.op import Op
from jax_kernels.tuning import TuningCache

TOML = """
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[data]
train = ["a.txt"]
vocab_size = 300
seq_len = 16
[train]
global_batch_size = 2
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "aifx.toml").write_text(TOML)
    (tmp_path / "a.txt").write_text("It was the best of times, it was the worst of times. " * 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert run(["kernels", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    check_document(f"commands/kernels-{arguments[0]}", found)
    return found


def attention_of(ops: list[dict[str, Any]]) -> dict[str, Any]:
    """The one of training."""
    (found,) = [op for op in ops if op["op"] == "attention" and "training" in op["parts"]]
    return found


def assert_called(ops: list[dict[str, Any]]) -> None:
    called = {
        part: {op["op"] for op in ops if part in op["parts"]} for part in ("training", "evaluation", "generation")
    }
    everywhere = {"attention", "rms_norm", "rotary", "swiglu"}
    assert called["training"] == called["evaluation"] == everywhere | {"linear_cross_entropy"}
    # Generation multiplies by gate and up at once, in one matrix, and reads a prompt over the pages of its cache.
    assert called["generation"] == everywhere - {"swiglu", "attention"} | {"decode_attention"}
    assert {op["implementation"] for op in ops} == {"xla"}


def test_another_model_calls_other_ops(capsys: Any) -> None:
    ops = document(capsys, "explain", "--set", "model.norm=layer_norm", "--set", "model.activation=gelu")["ops"]
    assert {op["op"] for op in ops} == {"attention", "layer_norm", "rotary", "linear_cross_entropy", "decode_attention"}


@pytest.mark.slow
def test_from_nothing_measured_to_winners_and_back(capsys: Any, project: Path) -> None:
    explained = document(capsys, "explain")["ops"]
    assert_called(explained)
    guess = attention_of(explained)
    assert (guess["implementation"], guess["parts"]) == ("xla", ["training", "evaluation"])
    assert guess["reason"].startswith("first choice")
    assert guess["call"]["q_len"] == 16
    assert document(capsys, "ls")["winners"] == []
    tuned = document(capsys, "tune")["ops"]
    assert len(tuned) == len(explained)
    for op in tuned:
        assert {t["implementation"] for t in op["timings"]} == {"xla"}
        assert all(t["forward_s"] > 0 for t in op["timings"])
        is_trained = "training" in op["parts"]
        assert all((t["backward_s"] is not None) == is_trained for t in op["timings"])
    explained = document(capsys, "explain")["ops"]
    listed = document(capsys, "ls")["winners"]
    assert sorted(op["shapes"] for op in explained) == sorted(op["shapes"] for op in listed)
    assert all(op["reason"].startswith("measured") for op in explained)
    assert run(["kernels", "clear"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert len(document(capsys, "clear", "--yes")["removed"]) == 1
    assert document(capsys, "ls")["winners"] == []
    assert not (project / "runs").exists()


@pytest.mark.slow
def test_the_tables(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of one call, since all of them take long to measure."""
    project = find_project()
    calls = project_calls(project, load_config(project))
    monkeypatch.setattr("aifx.kernels.choice.project_calls", lambda *_, **__: calls[:1])
    monkeypatch.setattr(
        "aifx.kernels.choice.project_calls_isolated", lambda *_, **__: (current_device(), calls[:1], [])
    )
    for command in ("explain", "tune", "ls"):
        assert run(["kernels", command]) == 0
        assert "xla" in capsys.readouterr().out
    monkeypatch.setattr(Op, "source_digest", lambda op, implementation: "of a later version")
    (row,) = document(capsys, "ls")["winners"]
    assert re.match("not used, .*code.*: measured", row["reason"])


@pytest.mark.parametrize("changes", [{"op": "of a later version"}, {"field_of_a_later_version": 1}], ids=str)
def test_winners_of_another_version_are_not_listed(changes: dict[str, Any], capsys: Any, project: Path) -> None:
    call = ATTENTION.call(1, 8, 8, 2, 2, 8, "float32", True, None, 0, False, 0.25, None)
    tuning_cache = TuningCache(project / "cache" / "kernels", current_device())
    tuning_cache.put(ATTENTION, call, ATTENTION.choice("xla", (), "measured"))
    (key,) = tuning_cache.choices()
    document_ = json.loads(tuning_cache.path.read_text())
    document_["winners"][json.dumps(json.loads(key) | changes)] = document_["winners"][key]
    tuning_cache.path.write_text(json.dumps(document_))
    (row,) = document(capsys, "ls")["winners"]
    assert row["op"] == "attention"


def test_what_is_asked_for_and_cannot(capsys: Any) -> None:
    assert run(["kernels", "explain", "--set", "kernels.attention=cudnn", "--json"]) == 0
    out, err = capsys.readouterr()
    op = attention_of(json.loads(out)["ops"])
    assert op["implementation"] == "xla"
    assert re.search("cudnn.*NVIDIA GPUs", op["reason"])
    assert re.search("cudnn.*NVIDIA GPUs.* xla\n", err)
