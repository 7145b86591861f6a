"""Measured winners: found, kept on disk beside those of others, and never a reason to fail."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import odd_op
import pytest
from odd_op import ODD

from aifx.kernels.choice import winners_path
from jax_kernels._ops.attention import ATTENTION
from jax_kernels._ops.attention.call import Call
from jax_kernels.builtin_configs import builtin_choice
from jax_kernels.dispatch import Choices, choose
from jax_kernels.implementations import Config, Device, current_device
from jax_kernels.op import Choice, Op, _source_digest
from jax_kernels.ops import benchmark_cases
from jax_kernels.trials import TrialProcess
from jax_kernels.tuning import Candidate, TuningCache, check_or_time, tune, verify, winners_folder

CALL = Call(1, 32, 32, 2, 2, 8, "float32", True, None, 0, False, 0.25, None)
BOTH = replace(ATTENTION, preference={**ATTENTION.preference, "cpu": ("xla", "reference")})
CPU = Device("cpu", "cpu")


@pytest.fixture(autouse=True)
def generous_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing fail for the slowness of a busy machine."""
    monkeypatch.setattr("jax_kernels.trials.LIMIT_S", 300.0)
    monkeypatch.setattr("jax_kernels.trials.START_S", 300.0)


@pytest.fixture(scope="module")
def trials() -> Iterator[TrialProcess]:
    with TrialProcess(check_or_time) as trial:
        yield trial


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"has_segments": True}, {"q_offset": None}, {"num_kv_heads": 1}])
def test_the_fastest_wins(changes: dict[str, object], trials: TrialProcess, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jax_kernels")
    choice, timings = tune(BOTH, replace(CALL, **changes), CPU, trials)
    assert next(t.implementation for t in timings if t.seconds is not None) == choice.implementation
    assert {t.implementation for t in timings} == {"xla", "reference"}
    assert choice.reason.startswith("measured")
    assert all(t.forward_s is not None and t.backward_s is not None for t in timings)
    assert len(caplog.messages) == 2


@pytest.mark.representative("tuned kernels")
def test_the_backward_pass_counts_in_training_alone(trials: TrialProcess) -> None:
    call = odd_op.Call(8)
    choice, timings = tune(odd_op.TRAINED, call, CPU, trials)
    assert choice.implementation == "slow_forward"
    assert all(t.backward_s is not None for t in timings)
    choice, timings = tune(odd_op.TRAINED, call, CPU, trials, is_trained=False)
    assert choice.implementation == "slow_backward"
    assert all(t.backward_s is None for t in timings)


@pytest.mark.slow
def test_a_candidate_that_crashes_hangs_fails_or_is_wrong_is_one_less(
    trials: TrialProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = trials.do

    def do_for(item: Any, limit_s: float | None = None) -> Any:
        return do(item, 4.0 if isinstance(item, Candidate) and item.implementation == "hang" else limit_s)

    monkeypatch.setattr(trials, "do", do_for)
    choice, timings = tune(ODD, odd_op.Call(4096), CPU, trials)
    assert {t.implementation for t in timings if t.seconds is not None} == {"good", "xla"}
    assert choice.implementation in ("good", "xla")
    failures = {t.implementation: t.failure for t in timings if t.failure is not None}
    expected = {"off": "2.5e-01", "crash": "SIGSEGV", "hang": " 4 s", "refuse": "the compiler cannot"}
    assert failures.keys() == expected.keys()
    assert all(fact in failures[name] for name, fact in expected.items())


@pytest.mark.slow
def test_a_candidate_that_only_fails_while_it_is_timed_is_one_less(trials: TrialProcess, tmp_path: Path) -> None:
    op = replace(ODD, preference={"cpu": ("late", "good", "xla")})
    choice, timings = tune(op, odd_op.Call(8, made_by_late=str(tmp_path / "calls")), CPU, trials)
    assert choice.implementation in ("good", "xla")
    ((name, failure),) = ((t.implementation, t.failure) for t in timings if t.failure is not None)
    assert name == "late"
    assert failure.endswith("SIGSEGV")


@pytest.mark.slow
def test_the_first_kernel_that_is_right_is_verified_and_others_are_not_tried_again(
    trials: TrialProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    op = replace(ODD, preference={"cpu": ("off", "crash", "good", "xla")})
    caplog.set_level(logging.INFO, "jax_kernels")
    tuning_cache, call = TuningCache(tmp_path, CPU), odd_op.Call(64)
    assert Choices(measured=tuning_cache).choose(op, call, CPU).implementation == "xla", "no kernel is taken untried"
    verify(op, call, CPU, tuning_cache, trials)
    found = Choices(measured=tuning_cache).choose(op, call, CPU)
    assert found.implementation == "good"
    assert found.reason.startswith("verified: on cpu ")
    assert len(caplog.messages) == 3
    assert re.search("odd: crash .*cpu .*SIGSEGV", caplog.messages[1])
    verify(op, call, CPU, tuning_cache, trials)
    assert len(caplog.messages) == 3, "it has a winner"
    again, other = TuningCache(tmp_path, CPU), replace(call, length=65)
    assert "SIGSEGV" in str(again.failed(op, call, "crash"))
    assert again.failed(op, call, "good") is None
    assert again.failed(op, other, "crash") is None
    monkeypatch.setattr(Op, "source_digest", lambda op, implementation: "of a later version")
    assert again.failed(op, call, "crash") is None, "it may have been fixed"


@pytest.mark.slow
def test_where_no_kernel_is_right_xla_runs_and_none_is_tried_again(
    trials: TrialProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = replace(ODD, preference={"cpu": ("off", "refuse", "xla")})
    caplog.set_level(logging.INFO, "jax_kernels")
    tuning_cache = TuningCache(tmp_path, CPU)
    for _ in range(2):
        verify(only, odd_op.Call(64), CPU, tuning_cache, trials)
    assert len(caplog.messages) == 2
    assert Choices(measured=tuning_cache).choose(only, odd_op.Call(64), CPU).implementation == "xla"


def test_winners_are_kept(tmp_path: Path) -> None:
    mine, other = TuningCache(tmp_path, CPU), TuningCache(tmp_path, CPU)
    mine.put(ATTENTION, CALL, ATTENTION.choice("reference", (("block", 8),), "measured"))
    other.put(ATTENTION, replace(CALL, batch=2), Choice("xla"))
    again = TuningCache(tmp_path, CPU)
    assert again(ATTENTION, CALL, CPU) == Choice("reference", (("block", 8),), "measured")
    assert len(again.choices()) == 2, "what another process put there stays"
    assert again(ATTENTION, replace(CALL, causal=False), CPU) is None
    assert Choices(measured=again).choose(ATTENTION, CALL, current_device()).implementation == "reference"
    assert TuningCache(tmp_path, Device("gpu", "NVIDIA H100 80GB HBM3"))(ATTENTION, CALL, CPU) is None


def test_a_winner_whose_code_has_changed_is_not_used(tmp_path: Path) -> None:
    tuning_cache = TuningCache(tmp_path, CPU)
    tuning_cache.put(ATTENTION, CALL, replace(ATTENTION.choice("reference", (), "measured"), source="of last year"))
    assert TuningCache(tmp_path, CPU)(ATTENTION, CALL, CPU) is None


@pytest.mark.parametrize(
    ("changed", "implementations"),
    [
        ("pallas_tpu.py", {"pallas_tpu"}),
        ("cudnn.py", {"cudnn", "cudnn_masked"}),
        ("call.py", set(ATTENTION.implementations)),
        ("cases.py", set()),
    ],
)
def test_a_winner_depends_on_the_code_that_it_is_made_of(
    changed: str, implementations: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"digested_{changed.removesuffix('.py')}"
    package.mkdir()
    for name in ("__init__.py", "call.py", "cases.py", "cudnn.py", "pallas_tpu.py"):
        (package / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    op = replace(ATTENTION, package=package.name)
    before = {implementation: op.source_digest(implementation) for implementation in op.implementations}
    (package / changed).write_text("x = 1")
    _source_digest.cache_clear()
    assert {
        implementation
        for implementation in op.implementations
        if op.source_digest(implementation) != before[implementation]
    } == implementations


def test_a_new_batch_size_takes_the_nearest_winner(tmp_path: Path) -> None:
    def offered(call: Call, device: Device) -> list[Config]:
        return [(("block", min(size, call.batch)), ("warps", 4)) for size in (4, 64, 32)]

    op = replace(
        BOTH,
        implementations={
            **ATTENTION.implementations,
            "xla": replace(ATTENTION.implementations["xla"], configs=offered),
        },
    )
    tuning_cache = TuningCache(tmp_path, CPU)
    for batch, implementation, block in ((16, "reference", 0), (64, "xla", 64), (4096, "none of these", 0)):
        config = (("block", block), ("warps", 4)) if block else ()
        tuning_cache.put(op, replace(CALL, batch=batch), op.choice(implementation, config, f"measured {batch}"))
    tuning_cache.put(op, replace(CALL, batch=48, window=3), op.choice("reference", (), "another call"))
    found = {batch: tuning_cache(op, replace(CALL, batch=batch), CPU) for batch in (1, 20, 40, 9999)}
    reference = Choice("reference", (), "measured 16, for batch=16")
    assert found == {
        1: reference,
        20: reference,
        40: Choice("xla", (("block", 40), ("warps", 4)), "measured 64, for batch=64"),
        9999: Choice("xla", (("block", 64), ("warps", 4)), "measured 64, for batch=64"),
    }


def test_the_shipped_winners_serve_other_batch_sizes() -> None:
    case = next(
        case for case in benchmark_cases(ATTENTION, "cpu") if builtin_choice(ATTENTION, case.call("float32"), CPU)
    )
    call = case.call("float32")
    exact, near = (builtin_choice(ATTENTION, replace(call, batch=batch), CPU) for batch in (call.batch, 3 * call.batch))
    assert exact is not None
    assert near is not None
    assert near.reason == f"{exact.reason.partition(', for')[0]}, for batch={call.batch}"
    assert (near.implementation, dict(near.config)["block_q"]) == (exact.implementation, dict(exact.config)["block_q"])


def test_calls_outside_a_run_take_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path))
    assert winners_folder() == winners_path(), "where `aifx kernels tune` writes"
    assert choose(ATTENTION, CALL, "auto").implementation == "xla"
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "tuned"))
    TuningCache(winners_folder(), current_device()).put(ATTENTION, CALL, ATTENTION.choice("reference", (), "measured"))
    assert choose(ATTENTION, CALL, "auto") == Choice("reference", (), "measured")
    assert choose(ATTENTION, CALL, "xla").implementation == "xla"


@pytest.mark.parametrize("name", ["AIFX_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_the_folder_of_winners_is_that_of_aifx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("AIFX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    assert winners_folder() == winners_path()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format": 2}',
        "another version",
        "winners that are none",
        "of no call",
    ],
    ids=str,
)
def test_a_file_that_is_damaged_or_foreign_is_set_aside(tmp_path: Path, damage: bytes | str) -> None:
    tuning_cache = TuningCache(tmp_path, CPU)
    tuning_cache.put(ATTENTION, CALL, Choice("xla"))
    document = json.loads(tuning_cache.path.read_text())
    if damage == "another version":
        damage = json.dumps(document | {"jaxlib": "0.1"}).encode()
    elif damage == "winners that are none":
        damage = json.dumps(document | {"winners": {"x": 3}}).encode()
    elif damage == "of no call":
        damage = json.dumps(document | {"winners": {"[]": Choice("xla").document()}}).encode()
    assert isinstance(damage, bytes)
    tuning_cache.path.write_bytes(damage)
    again = TuningCache(tmp_path, CPU)
    with pytest.warns(UserWarning, match="set aside"):
        assert again(ATTENTION, CALL, CPU) is None
    assert [p.suffix for p in tmp_path.iterdir()] == [".damaged"]
    again.put(ATTENTION, CALL, Choice("xla"))
    assert list(TuningCache(tmp_path, CPU).choices().values()) == [Choice("xla")]
