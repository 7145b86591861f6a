"""The stress: real on four devices that the CPU shows, and with children that hang, die or lie."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest
from health_machines.stressed import events

from aifx.core import processes
from aifx.core.facts import Absent, to_document
from aifx.core.logs import log_lines
from aifx.health import stress
from aifx.health.stress import sensors
from aifx.health.stress.record import Record, compare

LONG_S = 1e6
FOUR = "--xla_force_host_platform_device_count=4"


SHORTER = """
from aifx.machine import microbenchmarks
from aifx.health.stress import child, consistency_check, measures

transfer = microbenchmarks.Transfer
microbenchmarks.Transfer = lambda device, num_bytes: transfer(device, num_bytes >> 8)
measures.USUAL_PRODUCT = {"cpu": (256, 4)}
measures._beyond_caches = lambda device: 1 << 20
run = consistency_check.run
consistency_check.run = lambda devices, runs, limit_s: run(devices, runs, 3600.0)
child.LEVELS["quick"] = child.Level(slice_s=0.02, consistency=3, load_s=0.4)
child.main()
"""
"""The child as it is, over less data and in less time. A busy machine may take long to compile."""


@pytest.fixture(autouse=True)
def generous_limits(monkeypatch):
    """A child may be slow to write its next line."""
    monkeypatch.setattr(stress, "GRACE_S", 600.0)


class JumpingClock:
    """The clock, which goes on by a day when the line `jumps_at` is logged."""

    jumps_at, ahead_s = "", 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead_s

    def take(self, line):
        if line == self.jumps_at:
            self.ahead_s = 86_400.0


@pytest.fixture
def clock(monkeypatch):
    clock = JumpingClock()
    monkeypatch.setattr(stress, "time", clock)
    monkeypatch.setattr(processes, "time", clock)
    with log_lines(clock.take):
        yield clock


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("child")
    (folder / "stress_child_that_is_shorter.py").write_text(SHORTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("XLA_FLAGS", FOUR.replace("4", "2") + " --xla_backend_optimization_level=0")
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setattr(stress, "GRACE_S", 600.0)
        lines: list[str] = []
        with log_lines(lines.append):
            return stress.collect("quick", 3600.0, "stress_child_that_is_shorter"), lines


@pytest.mark.slow
def test_two_devices_are_measured_and_agree(measured):
    facts, lines = measured
    assert facts["ended"] == "finished"
    assert facts["left_out"] == []
    assert facts["failures"] == []
    assert [d["device"] for d in facts["devices"]] == ["cpu:0", "cpu:1"]
    for device in facts["devices"]:
        assert device["state"] == "finished", device["error"]
        assert device["num_wrong"] == 0
        assert [p["dtype"] for p in device["matmul"]] == ["float32", "bfloat16", "float16", "int8"]
        rates = [p["tflops"] for p in device["matmul"]] + [m["gb_s"] for m in (*device["memory"], *device["copies"])]
        assert all(rate > 0 for rate in rates)
        assert device["matmul"][0]["of_peak"] > 0
        assert device["sustained"][0]["kept"] > 0
    assert {c["device"] for c in facts["collectives"]} == {"all-reduce", "all-gather"}
    assert all(c["num_wrong"] == 0 for c in facts["collectives"])
    assert len(facts["consistency"]) == 4
    for row in facts["consistency"]:
        assert (row["peers"], row["runs"]) == (2, 3)
        assert row["programs"] >= 8
        assert (row["odd"], row["unsteady"], row["inexact"]) == ([], [], [])
    # Cold as hot, on one device as on the other; and what a node of another fleet must have alike to be compared.
    assert len({row["digest"] for row in facts["consistency"]}) == 1
    (made_by,) = {row["made_by"] for row in facts["consistency"]}
    assert made_by.startswith(f"2 x cpu; jax {metadata.version('jax')}; jaxlib ")
    assert "XLA_FLAGS=--xla_force_host" in made_by
    assert "consistency check, cold" in lines
    json.dumps(to_document(facts))


CORRUPT = """
import sys
import jax, jax.numpy as jnp
from jax import lax
from aifx.health.stress import consistency_check

def corrupt(size, seed):
    # One bit of one output, on the third device alone.
    found = consistency_check._programs(size, seed)
    at = lax.axis_index("d") == 2
    bits = lax.bitcast_convert_type(found["matmul bfloat16"], jnp.uint32)
    bits = bits.at[17, 3].set(bits[17, 3] ^ jnp.where(at, jnp.uint32(1 << 9), jnp.uint32(0)))
    found["matmul bfloat16"] = lax.bitcast_convert_type(bits, jnp.float32)
    found["integers"] = found["integers"].at[5].add(jnp.where(at, jnp.uint32(1), jnp.uint32(0)))
    return found

devices = jax.local_devices()
hashes, exact = consistency_check.run(devices, 2, 1200.0, corrupt)
import json
print(json.dumps([hashes, exact]))
"""


@pytest.mark.slow
def test_one_flipped_bit_names_the_device_and_the_program():
    environ = {**os.environ, "XLA_FLAGS": FOUR, "JAX_PLATFORMS": "cpu"}
    printed = subprocess.run(
        [sys.executable, "-c", CORRUPT], env=environ, capture_output=True, check=True, timeout=1200
    )
    hashes, exact = json.loads(printed.stdout)
    rows = {row["device"]: row for row in compare(hashes, dict.fromkeys(hashes, "cpu"), exact)}
    assert rows["cpu:2"]["odd"] == ["matmul bfloat16", "integers"]
    assert rows["cpu:2"]["inexact"] == ["integers"]
    assert rows["cpu:2"]["unsteady"] == []
    (digest,) = {rows[f"cpu:{i}"]["digest"] for i in (0, 1, 3)}
    assert rows["cpu:2"]["digest"] != digest
    assert all(rows[f"cpu:{i}"]["num_odd"] == rows[f"cpu:{i}"]["num_inexact"] == 0 for i in (0, 1, 3))


def test_two_that_differ_are_both_odd_and_kinds_are_not_mixed():
    hashes = {"a": {"p": ["1"]}, "b": {"p": ["2"]}, "c": {"p": ["3"]}}
    rows = {r["device"]: r for r in compare(hashes, {"a": "x", "b": "x", "c": "y"}, {})}
    assert rows["a"]["odd"] == rows["b"]["odd"] == ["p"]
    assert rows["c"]["odd"] == []
    assert [r["peers"] for r in rows.values()] == [2, 2, 1]


def test_one_that_does_not_repeat_itself_is_unsteady():
    (row,) = compare({"a": {"p": ["1", "2", "1"], "q": ["5", "5", "5"]}}, {"a": "x"}, {"q": "5", "p": "1"})
    assert row["unsteady"] == ["p"]
    assert row["inexact"] == ["p"]


TELLS = """
import json, os, sys, time
def emit(**about):
    print(json.dumps(about), flush=True)
first, without = int(sys.argv[3]), sys.argv[4].split(",")
emit(event="devices", devices=[{"device": f"gpu:{i}", "kind": "k", "platform": "gpu"} for i in range(3)])
rate = {"gb_s": 1.0, "of_peak": 0.9, "wrong_elements": 0, "is_right": True}
for step, (device, what) in enumerate([(d, w) for d in ("gpu:0", "gpu:1", "gpu:2") for w in ("memory", "again")]):
    if step < first or device in without:
        continue
    about = dict(step=step, key="memory", device=device, what=what)
    emit(event="begin", limit_s=900, suspect_s=SUSPECT, **about)
    if device == "gpu:1":
        FAULT
    emit(event="result", value=rate, **about)
emit(event="end")
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A child that measures, until the second of its three devices meets a fault."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(fault, suspect_s=900):
        source = TELLS.replace("FAULT", fault).replace("SUSPECT", str(suspect_s))
        (tmp_path / "stress_child_of_a_test.py").write_text(source)
        return "stress_child_of_a_test"

    return make


@pytest.mark.parametrize(
    ("fault", "state", "error"),
    [
        ("time.sleep(3600)", "hung", "nothing was heard"),
        ("os.kill(os.getpid(), 9)", "failed", "signal 9"),
        ("sys.exit('Xid 79 has fallen off the bus')", "failed", "Xid 79"),
        ("emit(event='hung', **about); time.sleep(3600)", "hung", "did not end"),
    ],
)
def test_a_device_that_hangs_or_kills_is_named_and_the_others_are_measured(child, clock, fault, state, error):
    clock.jumps_at = "gpu:1: memory" if fault.startswith("time.sleep") else ""
    facts = stress.collect("quick", LONG_S, child=child(fault))
    devices = {d["device"]: d for d in facts["devices"]}
    assert devices["gpu:1"]["state"] == state
    assert error in devices["gpu:1"]["error"]
    assert isinstance(devices["gpu:1"]["memory"], Absent)
    for name in ("gpu:0", "gpu:2"):
        assert devices[name]["state"] == "finished"
        assert len(devices[name]["memory"]) == 2
    assert facts["ended"] == "finished"


def test_the_budget_bounds_it(child, clock):
    clock.jumps_at = "gpu:1: memory"
    facts = stress.collect("quick", 3600.0, child=child("time.sleep(3600)", suspect_s=LONG_S))
    assert (facts["ended"], facts["is_cut"]) == ("out of time", True)
    assert len(facts["devices"][0]["memory"]) == 2


@pytest.mark.slow
def test_a_slow_import_of_jax_is_within_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = "import time\ntime.sleep(3)\nfrom aifx.health.stress.child import main\nmain()\n"
    (tmp_path / "stress_child_that_imports_slowly.py").write_text(source)
    facts = stress.collect("quick", 3.0, child="stress_child_that_imports_slowly")
    assert facts["left_out"][0].endswith("cold of all")
    assert len(facts["left_out"]) > 3
    assert isinstance(facts["consistency"], Absent)


def test_a_hang_that_the_budget_ends_is_a_hang(child, clock):
    clock.jumps_at = "gpu:1: memory"
    facts = stress.collect("quick", 3600.0, child=child("time.sleep(3600)"))
    assert facts["devices"][1]["state"] == "hung"


def test_devices_that_hang_together_break_it(child, clock):
    clock.jumps_at = "memory"
    fault = "emit(event='begin', **{**about, 'device': 'all'}, limit_s=900, suspect_s=900); time.sleep(3600)"
    facts = stress.collect("quick", LONG_S, child=child(fault))
    assert (facts["ended"], facts["is_broken"]) == ("hung", True)
    assert [f["device"] for f in facts["failures"]] == ["all"]


def test_devices_that_another_process_holds_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "stress_child_held.py").write_text("raise SystemExit('The TPU is already in use by process 4711')")
    facts = stress.collect("quick", LONG_S, child="stress_child_held")
    assert (facts["ended"], facts["is_cut"], facts["is_broken"]) == ("held", True, False)


def test_sensors_tell_who_is_throttled_while_the_load_runs():
    hot = {"GPU 1": {"temperature_c": 84, "clock_mhz": 1410, "power_w": None, "reasons": ["hardware thermal"]}}
    cool = {"GPU 1": {"temperature_c": 50, "clock_mhz": 1980, "power_w": None, "reasons": []}}
    samples = [(1.0, hot), (2.0, cool), (3.0, hot), (4.0, cool), (9.0, hot)]
    row = next(r for r in sensors.summary(samples, 2.0, 5.0) if r["device"] == "GPU 1")
    assert (row["samples"], row["temperature_max_c"], row["clock_min_mhz"]) == (3, 84, 1410)
    assert row["throttled"] == pytest.approx(1 / 3)
    assert isinstance(row["power_max_w"], Absent)
    assert sensors.read_cpu().keys() == hot["GPU 1"].keys()


def test_a_child_without_jax_is_broken_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "stress_child_that_ends.py").write_text("raise SystemExit('no backend')")
    facts = stress.collect("quick", LONG_S, child="stress_child_that_ends")
    assert (facts["ended"], facts["is_broken"], facts["devices"]) == ("died", True, [])
    assert "no backend" in facts["why"]


INTERRUPTED = """
import json, logging, sys
from aifx.core.logs import log_to
from aifx.health import stress
from aifx.core.facts import to_document
stress.GRACE_S = 600.0
with log_to(logging.StreamHandler()):
    facts = stress.collect("quick", 1e6, sys.argv[1])
print(json.dumps(to_document(facts)))
"""


def test_what_was_measured_survives_ctrl_c(child):
    module = child("time.sleep(3600)")
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, module], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("gpu:1" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    facts = json.loads(out)
    assert process.returncode == 0
    assert (facts["ended"], facts["is_cut"]) == ("interrupted", True)
    assert len(facts["devices"][0]["memory"]) == 2


def test_the_record_is_whole_at_any_moment():
    script = events()
    for end in range(len(script) + 1):
        record = Record("quick")
        for event in script[:end]:
            record.take(event, 0.0)
        json.dumps(to_document(record.facts("interrupted", "Ctrl-C", 1.0)))


@pytest.mark.parametrize(
    ("caches", "room", "expected"),
    [(32 << 20, 64 << 30, 256 << 20), (384 << 20, 64 << 30, 1536 << 20), (384 << 20, 4 << 30, 1 << 30),
     (384 << 20, None, 256 << 20)],
)  # fmt: skip
def test_the_triad_of_a_cpu_is_of_more_than_its_caches_hold(caches, room, expected, monkeypatch):
    from aifx.health.stress import measures

    monkeypatch.setattr(measures, "cache_bytes", lambda platform: caches)
    monkeypatch.setattr(measures, "room", lambda devices: room)
    assert measures._beyond_caches(None) == expected
