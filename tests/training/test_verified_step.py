"""A step computed twice: that it changes nothing, that a difference is found and placed, and that the run then ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.core.errors import ExitCode
from aifx.training.hooks.verification import Corrupted, device_digests, judge


def test_it_changes_nothing(tiny, whole, logged: list[str]) -> None:
    result = tiny.train("guards.verify_every=3")
    assert result.state_digest == whole.result.state_digest
    assert tiny.records() == whole.records
    (line,) = (line for line in logged if "guards.verify_every = 3" in line)
    assert "33.33% more time" in line
    assert " kB more memory" in line


@pytest.mark.representative("a processor that computes something else")
def test_a_fault_ends_the_run_without_a_checkpoint(tiny) -> None:
    settings = (
        "guards.verify_every=3",
        "checkpoint.every=2",
        "checkpoint.asynchronous=false",
        "train.validate_every=0",
    )
    # The fifth computation of a loss is the second one of step 4: steps 1 and 2, step 3 twice, step 4 once.
    with pytest.raises(Corrupted) as raised:
        tiny.train(*settings, "data.flaky_call=4")
    assert raised.value.exit_code == ExitCode.PREEMPTED
    assert "step 3 " in raised.value.what
    assert "computed again" in raised.value.what
    assert "CPU" in raised.value.why.upper()
    assert "params/" in raised.value.why
    assert [p.name for p in sorted(tiny.run().checkpoints.iterdir())] == ["2"]
    (stop,) = (event for event in tiny.events() if event["event"] == "stop")
    assert stop["status"] == "preempted"
    assert raised.value.what in stop["why"]
    assert tiny.train(*settings, "data.flaky_call=4").status == "completed", "the fault was of that computation alone"


def differing(**devices: list[str]) -> dict[str, Any]:
    return {"differing": dict(devices), "replicas": {}}


def test_which_devices_differ() -> None:
    assert judge([differing(a=[], b=[]), differing(c=[])]) is None
    what, why = judge([differing(a=[], b=["params/bias"]), differing(c=[])]) or ("", "")
    assert "computed again" in what
    assert why == "b: params/bias"
    _, why = judge([differing(a=list("vwxyz"))]) or ("", "")
    assert why.startswith("a: v, w, x "), "a device alone"
    assert "2 more" in why
    _, why = judge([differing(a=["x"]), differing(b=["x"])]) or ("", "")
    assert "all devices differ" in why


def test_which_replicas_differ() -> None:
    def replicas(**lanes: int) -> dict[str, Any]:
        return {"differing": dict.fromkeys(lanes, ()), "replicas": {name: [[n, n]] for name, n in lanes.items()}}

    assert judge([replicas(a=1, b=1), replicas(c=1)]) is None
    _, why = judge([replicas(a=1, b=1), replicas(c=2)]) or ("", "")
    assert "of c differ" in why
    _, why = judge([replicas(a=1), replicas(c=2)]) or ("", "")
    assert why.endswith(" a, c")


@pytest.mark.slow
def test_the_device_that_differs_is_named(tiny) -> None:
    """On two devices, in a process of its own: a bit flipped on one of them, in the result or between them."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"}
    place = Path(__file__).with_name("flipped_bits.py")
    done = subprocess.run(
        [sys.executable, str(place)], cwd=tiny.root, env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["none"] is None
    for call in ("first", "second"):
        assert "step 1 " in found[call]["what"]
        assert "computed again" in found[call]["what"]
        (line,) = found[call]["why"].splitlines()
        assert line.startswith(f"{found['devices'][1]} on ")
        assert line.endswith(": params/bias")
    assert "all devices differ" in found["both"]["why"]
    assert "the same arrays" in found["replica"]["what"]


def test_a_flipped_bit_of_any_array_shows(tiny) -> None:
    programs = tiny.programs("optimizer.ema_decay=0.9")
    state, _ = programs.init()
    numbers = jnp.zeros(3)
    before = device_digests(state, numbers)
    leaves, structure = jax.tree.flatten(state)
    for number, leaf in enumerate(leaves):
        if not leaf.size:
            continue
        data = np.array(leaf)
        data.reshape(-1).view(np.uint8)[-1] ^= 1
        changed = jax.tree.unflatten(structure, [*leaves[:number], jnp.asarray(data), *leaves[number + 1 :]])
        (found,) = device_digests(changed, numbers).values()
        (known,) = before.values()
        assert sum(found[name] != known[name] for name in known) == 1
