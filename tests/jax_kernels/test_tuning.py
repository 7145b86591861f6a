"""Measured winners: found, kept on disk beside those of others, and never a reason to fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jax_kernels.attention import ATTENTION
from jax_kernels.attention.call import Call
from jax_kernels.choosing import Choices
from jax_kernels.forms import Device, Form, current_device
from jax_kernels.op import Choice
from jax_kernels.tuning import Winners, tune

CALL = Call(1, 32, 32, 2, 2, 8, "float32", True, None, 0, False, 0.25, None)
BOTH = replace(ATTENTION, preference={**ATTENTION.preference, "cpu": ("xla", "reference")})
CPU = Device("cpu", "cpu")


@pytest.mark.parametrize("changes", [{}, {"has_segments": True}, {"q_offset": None}, {"num_kv_heads": 1}])
def test_the_fastest_wins(changes: dict[str, object]) -> None:
    told: list[str] = []
    choice, timings = tune(BOTH, replace(CALL, **changes), tell=told.append)
    assert next(t.form for t in timings if t.seconds is not None) == choice.form
    assert {t.form for t in timings} == {"xla", "reference"}
    assert choice.reason.startswith("measured")
    assert len(told) == 2


def test_a_candidate_that_fails_is_one_less() -> None:
    def broken(*arguments: object) -> object:
        raise ValueError("no room for the block")

    op = replace(BOTH, forms={**ATTENTION.forms, "reference": Form("reference", broken)})
    choice, timings = tune(op, CALL)
    assert choice.form == "xla"
    assert [t.failure for t in timings if t.failure] == ["no room for the block"]


def test_a_candidate_that_is_wrong_is_one_less() -> None:
    def wrong(call: Call, *arguments: object) -> tuple[object, object]:
        out, lse = ATTENTION.forms["xla"].run(call, *arguments)
        return 1.1 * out, lse

    op = replace(BOTH, forms={**ATTENTION.forms, "reference": Form("reference", wrong)})
    choice, timings = tune(op, CALL)
    assert choice.form == "xla"
    assert [t.failure for t in timings if t.failure] == ["its results are 1.0e-01 from XLA's"]


def test_winners_are_kept(tmp_path: Path) -> None:
    mine, other = Winners(tmp_path, CPU), Winners(tmp_path, CPU)
    mine.put(ATTENTION, CALL, Choice("reference", (("block", 8),), "measured"))
    other.put(ATTENTION, replace(CALL, batch=2), Choice("xla"))
    again = Winners(tmp_path, CPU)
    assert again(ATTENTION, CALL, CPU) == Choice("reference", (("block", 8),), "measured")
    assert len(again.choices()) == 2, "what another process put there stays"
    assert again(ATTENTION, replace(CALL, batch=3), CPU) is None
    assert Choices(measured=again).choose(ATTENTION, CALL, current_device()).form == "reference"
    assert Winners(tmp_path, Device("gpu", "NVIDIA H100 80GB HBM3"))(ATTENTION, CALL, CPU) is None


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff\xfe", b"[]", b"{}", b'{"format": 1}', "another version", "winners that are none"],
    ids=str,
)
def test_a_file_that_is_damaged_or_foreign_is_set_aside(tmp_path: Path, damage: bytes | str) -> None:
    winners = Winners(tmp_path, CPU)
    winners.put(ATTENTION, CALL, Choice("xla"))
    document = json.loads(winners.path.read_text())
    if damage == "another version":
        damage = json.dumps(document | {"jaxlib": "0.1"}).encode()
    elif damage == "winners that are none":
        damage = json.dumps(document | {"winners": {"x": 3}}).encode()
    assert isinstance(damage, bytes)
    winners.path.write_bytes(damage)
    again = Winners(tmp_path, CPU)
    with pytest.warns(UserWarning, match="set aside"):
        assert again(ATTENTION, CALL, CPU) is None
    assert [p.suffix for p in tmp_path.iterdir()] == [".damaged"]
    again.put(ATTENTION, CALL, Choice("xla"))
    assert Winners(tmp_path, CPU)(ATTENTION, CALL, CPU) == Choice("xla")
