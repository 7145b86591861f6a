"""Meshes of eight simulated devices train as one device does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import IS_LONG
from mesh_trials import FAMILIES, TEXT
from running_trials import OF_INT8_NORMS, check_equal, differences, run_trials

from aifx.config.sections import MeshSection
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.nn.initializers import zeros
from aifx.optim.sharded_muon import Matrix
from aifx.parallel.checks import check_batch
from aifx.parallel.layout import abstract_layout
from aifx.programs.build import build
from aifx.specs import ArraySpec
from aifx.tasks import describe_task

MESHES = {
    "data=8": ["mesh.data=8", "train.gradient_accumulation=2"],
    "fsdp=8": ["mesh.fsdp=8"],
    "fsdp=4 x tensor=2": ["mesh.fsdp=4", "mesh.tensor=2"],
    "data=2 x fsdp=2 x tensor=2": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
    "fsdp=4 x context=2": ["mesh.fsdp=4", "mesh.context=2"],
    "fsdp=4 x context=2, ring": ["mesh.fsdp=4", "mesh.context=2", "mesh.context_method=ring"],
    "fsdp=8, other rules": ["mesh.fsdp=8", 'mesh.parameters=["mlp = fsdp", "embed ="]'],
    "fsdp=2 x context=4, ring": ["mesh.fsdp=2", "mesh.context=4", "mesh.context_method=ring"],
}
TENSOR_4 = "--set mesh.data=2 --set mesh.fsdp=1 --set mesh.tensor=4 --set mesh.context=1"
CONTEXT_4 = "--set mesh.data=2 --set mesh.fsdp=1 --set mesh.tensor=1 --set mesh.context=4"
QUICK = ("data=8", "fsdp=8", "fsdp=4 x context=2, ring")
MUON = ["optimizer.kind=muon", "optimizer.adam_learning_rate=0.01"]
TURBO_MUON = [*MUON, "optimizer.ns_steps=2"]
DROPPED = [
    "model.dropout=0.1", "data.packing=documents", "train.gradient_accumulation=2", "train.num_steps=5",
    "optimizer.ema_decay=0.9", *TURBO_MUON,
]  # fmt: skip
ADAPTED = [
    "finetune.base=base", "finetune.adapter=lora", "lora.rank=4", "lora.dropout=0.1", "train.num_steps=5",
]  # fmt: skip
CHATS = ["task.kind=chat", "objective.loss_on=completion"]
INT8 = ["finetune.base_quantize=int8"]
# A margin is a small difference of large log-probabilities: long steps would make more of their rounding.
PAIRS = ["task.kind=preference", "finetune.base=base", "optimizer.learning_rate=0.001"]
KINDS = ("all_gather", "reduce_scatter", "all_reduce")


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """By mesh; "one" is one device."""
    dropped = {
        "dropped, one": ("text", DROPPED, 1),
        "dropped": ("text", [*DROPPED, "mesh.fsdp=2", "mesh.tensor=2", "mesh.context=2"], 8),
    }
    pairs = [*PAIRS, *ADAPTED, *INT8]
    adapted = {
        "adapted, one": ("text", pairs, 1),
        "adapted": ("text", [*pairs, "mesh.fsdp=2", "mesh.tensor=2", "mesh.context=2"], 8),
    }
    quick = {name: ("text", MESHES[name], 8) for name in QUICK}
    return run_trials({"one": ("text", [], 1)} | quick | dropped | adapted)


@pytest.mark.representative("a mesh")
def test_dropout_and_packed_documents_are_one_devices(trained: dict[str, Any]) -> None:
    """Devices that divide heads, steps and rows drop what one device drops, and attend within documents."""
    check_equal(trained["dropped"], trained["dropped, one"], 1e-5)
    assert trained["dropped"]["losses"][0] != pytest.approx(trained["one"]["losses"][0], rel=1e-5)


@pytest.mark.representative("a mesh")
def test_muon_with_few_steps_changes_each_array_as_on_one_device(trained: dict[str, Any]) -> None:
    """AOL scales rows, so a square matrix has another update than its transpose. `attention/output` is one."""
    far = differences(trained["dropped"], trained["dropped, one"])
    assert {"params/layers/attention/output", "ema/layers/attention/output"} <= far.keys()
    assert max(far.values()) < 1e-3, far


@pytest.mark.representative("a mesh")
def test_adapters_and_pairs_of_answers_train_as_on_one_device(trained: dict[str, Any]) -> None:
    """Devices that divide the inputs of a matrix drop what one device drops of them. A pair counts once."""
    check_equal(trained["adapted"], trained["adapted, one"], 1e-5, OF_INT8_NORMS)
    assert trained["adapted"]["losses"][0] != trained["adapted"]["losses"][1]
    assert trained["adapted"]["evaluated"][1] == 10
    assert len(trained["adapted"]["reference"]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "int8", "chats", "pairs"])
def test_adapters_and_pairs_train_on_other_meshes_as_on_one_device(kind: str) -> None:
    settings = {
        "text": ADAPTED,
        "int8": [*ADAPTED, *INT8],
        "chats": [*ADAPTED, *CHATS],
        "pairs": [*PAIRS, "train.num_steps=5"],
    }[kind]
    meshes = {name: mesh for name, mesh in MESHES.items() if name != "fsdp=8, other rules"} | {
        "tensor=8": ["mesh.tensor=8"]  # of which two share a head of keys
    }
    if kind in ("chats", "pairs"):  # which are packed
        meshes = {name: mesh for name, mesh in meshes.items() if "ring" not in name}
    if not IS_LONG:  # each mesh with two of the kinds; random pairs of settings and meshes are below
        meshes = dict(list(meshes.items())[kind in ("int8", "chats") :: 2])
    requests = {name: ("text", [*settings, *mesh], 8) for name, mesh in meshes.items()}
    found = run_trials({"one": ("text", settings, 1)} | requests)
    for name in meshes:
        check_equal(found[name], found["one"], 1e-5, OF_INT8_NORMS if kind == "int8" else 1e-6)


@pytest.fixture(scope="module")
def all_trained(trained: dict[str, Any]) -> dict[str, Any]:
    return trained | run_trials({name: ("text", mesh, 8) for name, mesh in MESHES.items() if name not in QUICK})


@pytest.mark.representative("a mesh")
@pytest.mark.parametrize("mesh", QUICK)
def test_a_mesh_trains_as_one_device(trained: dict[str, Any], mesh: str) -> None:
    check_equal(trained[mesh], trained["one"], 1e-5)


@pytest.mark.representative("a mesh")
def test_one_device_has_no_collective(trained: dict[str, Any]) -> None:
    assert trained["one"]["collectives"] == []
    assert trained["one"]["losses"][-1] < 0.9 * trained["one"]["losses"][0]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [name for name in MESHES if name not in QUICK])
def test_other_meshes_train_as_one_device(all_trained: dict[str, Any], mesh: str) -> None:
    check_equal(all_trained[mesh], all_trained["one"], 1e-5)


@pytest.mark.slow
def test_a_ring_gathers_no_keys(all_trained: dict[str, Any]) -> None:
    kinds = {kind for kind, _, in_loop in all_trained["fsdp=2 x context=4, ring"]["collectives"] if in_loop}
    assert "collective-permute" in kinds
    sizes = {size for kind, size, _ in all_trained["fsdp=4 x context=2"]["collectives"] if kind == "all-gather"}
    keys = 4 * 32 * 4 * 8 * 4  # rows, steps, heads, head_dim, bytes
    assert keys in sizes
    found = all_trained["fsdp=2 x context=4, ring"]["collectives"]
    ring = [size for kind, size, in_loop in found if kind == "all-gather" and in_loop]
    # Keys or values of a device's eight rows would be as large as each of the MLP's three weights.
    assert ring.count(2 * keys) == 3 * 2  # of the forward and the backward pass


@pytest.mark.representative("a mesh")
def test_micro_batches_wait_for_no_other_device(trained: dict[str, Any]) -> None:
    """Devices along `data` add up their gradients once per step."""
    assert [found for found in trained["data=8"]["collectives"] if found[2]] == []
    assert any(kind == "all-reduce" for kind, *_ in trained["data=8"]["collectives"])


@pytest.mark.representative("a mesh")
def test_the_vocabulary_is_never_whole(trained: dict[str, Any]) -> None:
    """Devices that share it exchange vectors and sums of tokens."""
    for name in ("fsdp=8", "dropped"):
        table = trained[name]["vocab_bytes"]
        moved = [size for kind, size, _ in trained[name]["collectives"] if kind == "all-gather"]
        assert table not in moved, name


@pytest.mark.representative("a mesh")
def test_fsdp_divides_the_state_and_gathers_a_layer_at_a_time(trained: dict[str, Any]) -> None:
    """Each device holds its part of the state. The loop over layers moves one layer's weights and nothing larger."""
    found = trained["fsdp=8"]
    assert found["state_share"] <= 1.05 / 8
    assert trained["data=8"]["state_share"] == 1.0
    looped = {(kind, size) for kind, size, in_loop in found["collectives"] if in_loop}
    assert {kind for kind, _ in looped} >= {"all-gather"}
    assert {kind for kind, _ in looped} <= {"all-gather", "reduce-scatter", "all-reduce"}
    assert max(size for _, size in looped) <= found["layer_bytes"]


@pytest.mark.parametrize("sizes", [{}, {"tensor": 4}, {"fsdp": 4}, {"fsdp": 2, "tensor": 2}])
def test_a_square_matrix_is_no_other_one_on_a_mesh(sizes: dict[str, int]) -> None:
    """Rows stay rows, whatever mesh axes divide them: AOL scales them, and not the columns."""
    layout = abstract_layout(4, "cpu", "cpu", MeshSection(**sizes))
    output = ArraySpec((4, 8, 32), ("heads", "head_dim", "embed"), zeros, matrix=((0, 1), (2,)))
    up = ArraySpec((32, 32), ("embed", "mlp"), zeros, matrix=((0,), (1,)))
    wide, tall = (replace(up, shape=shape) for shape in ((32, 64), (64, 32)))
    orders = [Matrix.of(spec, layout).order for spec in (output, up, wide, tall)]
    assert orders == [(0, 1, 2), (0, 1), (0, 1), (1, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("muon", [MUON, TURBO_MUON], ids=["five steps", "two steps"])
def test_meshes_train_with_muon_as_one_device(all_trained: dict[str, Any], muon: list[str]) -> None:
    """Its collectives move each device's parts, not whole matrices.

    Of meshes that divide the parameters alike, one: how attention reads its keys is no matter of an optimizer.
    """
    names = ("data=8", "fsdp=8", "data=2 x fsdp=2 x tensor=2", "fsdp=4 x context=2", "fsdp=8, other rules")
    requests = {name: ("text", [*MESHES[name], *muon], 8) for name in names}
    found = run_trials({"one": ("text", muon, 1)} | requests)
    for name in names:
        check_equal(found[name], found["one"], 1e-4)
        moved = (sum(size for _, size, _ in of[name]["collectives"]) for of in (found, all_trained))
        added = next(moved) - next(moved)
        assert added <= 2 * found[name]["matrix_bytes"], name
    kinds = {kind for kind, _, in_loop in found["fsdp=8"]["collectives"] if not in_loop}
    assert "all-to-all" in kinds


@pytest.mark.slow
def test_narrow_types_train_on_a_mesh_as_on_one_device() -> None:
    """Weights round alike. They are gathered in bfloat16, and their gradients added up in float32."""
    narrow = ["train.precision=bfloat16", "train.parameter_dtype=bfloat16", "optimizer.moment_dtype=bfloat16"]
    kept = [*narrow[1:], "optimizer.ema_decay=0.9", "train.gradient_accumulation=2", "train.num_steps=5"]
    requests: dict[str, tuple[str, list[str], int]] = {}
    for name in ("fsdp=8", "data=2 x fsdp=2 x tensor=2"):
        requests |= {name: ("text", [*narrow, *MESHES[name]], 8), f"{name}, kept": ("text", [*kept, *MESHES[name]], 8)}
    found = run_trials({"one": ("text", narrow, 1), "one, kept": ("text", kept, 1)} | requests)
    for name in requests:
        if name.endswith("kept"):  # computed in float32
            np.testing.assert_allclose(found[name]["losses"], found["one, kept"]["losses"], rtol=5e-4, err_msg=name)
            np.testing.assert_allclose(found[name]["losses"][0], found["one, kept"]["losses"][0], rtol=1e-6)
            continue
        np.testing.assert_allclose(found[name]["losses"], found["one"]["losses"], rtol=2e-3, err_msg=name)
        types = {kind: {shape.rpartition("x")[2] for k, shape in found[name]["moved"] if k == kind} for kind in KINDS}
        assert types == {"all_gather": {"bf16", "i32"}, "reduce_scatter": {"f32", "bf16"}, "all_reduce": {"f32"}}
    # Not of weights: the vectors of eight rows' tokens, of which one device has each and the others add 0.
    narrow_sums = [shape for kind, shape in found["fsdp=8"]["moved"] if kind == "reduce_scatter" and "bf16" in shape]
    assert narrow_sums == ["64x64xbf16"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["small", "basic", "vit", "tabular", "series"])
def test_every_family_trains_on_a_mesh(family: str) -> None:
    meshes = ("data=8", "fsdp=8")
    found = run_trials({"one": (family, [], 1)} | {name: (family, MESHES[name], 8) for name in meshes})
    for name in meshes:
        check_equal(found[name], found["one"], 1e-5)
    assert found["fsdp=8"]["state_share"] < 0.5


@pytest.mark.parametrize(
    ("settings", "why", "hint"),
    [
        (
            ["mesh.tensor=8", "model.num_heads=4"],
            "heads of the model = 4 is not divisible",
            TENSOR_4,
        ),
        (["mesh.context=8", "data.seq_len=12"], "seq of the data = 12 is not divisible by mesh.context = 8", CONTEXT_4),
        (
            ["mesh.fsdp=8", "train.global_batch_size=12"],
            "12 / 8 is not whole",
            "--set train.devices=6 --set mesh.data=3",
        ),
        (["mesh.fsdp=3", "mesh.data=3"], "9 is not 8", "--set mesh."),
        (
            ["mesh.context=2", "mesh.context_method=ring", "model.dropout=0.1"],
            "a ring never holds them",
            "--set mesh.context_method=gather, or --set model.dropout=0",
        ),
        (
            ["mesh.context=2", "mesh.context_method=ring", "data.packing=documents"],
            "the ring's attention is over whole sequences",
            "--set mesh.context_method=gather",
        ),
        (
            ["mesh.context=2", "mesh.context_method=ring", "model.windows=[16]"],
            "model.windows = [16]",
            "--set mesh.context_method=gather",
        ),
        (
            ["mesh.tensor=2", "model.qk_norm=true", "model.qk_norm_over=heads"],
            "a norm over all heads needs them on one device",
            "--set mesh.tensor=1",
        ),
        (['mesh.parameters=["mlp = fsdp"]', "mesh.fsdp=2"], "a mesh axis divides one dimension", "mesh.parameters"),
        (
            ['mesh.parameters=["mlp ="]', "mesh.tensor=2"],
            "the rules divide 'mlp' over mesh.tensor in the computation, and not among the parameters",
            "--set mesh.parameters=[]",
        ),
        (
            ['mesh.computation=["tokens ="]', "mesh.tensor=2"],
            "heads, kv_heads, mlp, tokens are divided together: heads: tensor",
            "--set mesh.computation=[]",
        ),
        (['mesh.computation=["mlp ="]', "mesh.tensor=2"], "mlp: none", "--set mesh.computation=[]"),
        (['mesh.parameters=["vocab = tensor"]', "mesh.fsdp=8"], "'vocab' over mesh.fsdp", "--set mesh.parameters=[]"),
        (['mesh.computation=["batch = data"]', "mesh.fsdp=8"], "rows over mesh.fsdp", "--set mesh.computation=[]"),
        (
            ['mesh.computation=["batch = data fsdp tensor"]', "mesh.tensor=2"],
            "both 'batch' and 'tokens' over mesh.tensor",
            "--set mesh.computation=[]",
        ),
        (['mesh.parameters=["mlp = tensor tensor"]', "mesh.tensor=2"], "is no rule", "mesh.parameters"),
    ],
)
def test_what_a_mesh_cannot_divide_is_refused(tmp_path: Path, settings: list[str], why: str, hint: str) -> None:
    (tmp_path / "aifx.toml").touch()
    project = Project(tmp_path)
    config = load_config(project, [*TEXT, *settings], {})

    def trace() -> None:
        layout = abstract_layout(8, "cpu", "cpu", config.mesh)
        check_batch(layout, config.train.global_batch_size, config.train.gradient_accumulation)
        build(config, describe_task(config, project), layout).train_step.trace()

    with pytest.raises(ConfigError) as refused:
        trace()
    assert why in f"{refused.value.what} {refused.value.why}"
    assert hint in refused.value.hint


def test_a_family_that_cannot_be_divided_names_the_axis(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").touch()
    project = Project(tmp_path)
    config = load_config(project, [*FAMILIES["vit"], "mesh.tensor=2"], {})
    with pytest.raises(ConfigError, match=r"mesh\.tensor = 2, .*Vit"):
        build(config, describe_task(config, project), abstract_layout(8, "cpu", "cpu", config.mesh))
