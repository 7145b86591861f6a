"""`aifx bench hardware`: what it measures, of what, and what it keeps."""

import re
from itertools import pairwise

import jax
import pytest
from bench_reports import CPU, H100, report, result
from fake_suite import environ, fork_launches

from aifx.benchmarking import hardware, measured_peaks
from aifx.benchmarking.fingerprint import fingerprint
from aifx.benchmarking.hardware import WrongResult
from aifx.benchmarking.results import Failure, Request
from aifx.benchmarking.runner import Launches
from aifx.benchmarking.suites import SUITES, Bench
from aifx.benchmarking.timing import Effort, Samples
from aifx.core.errors import EnvironmentFault, ExitCode
from aifx.machine import microbenchmarks
from aifx.machine.device_memory import cache_bytes
from aifx.machine.measured_peaks import find_ceilings, keep_ceilings

DEVICE = jax.devices("cpu")[0]


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("AIFX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def bench(monkeypatch):
    """One that takes hardly any time."""
    monkeypatch.setattr(Bench, "effort", property(lambda self: Effort(0.002, least=3)))
    return Bench(SUITES["hardware"], True, {})


@pytest.mark.slow
def test_products_are_counted_and_each_library_is_told(bench, monkeypatch):
    monkeypatch.setattr(microbenchmarks, "USUAL_PRODUCT", {"cpu": (64, 1)})
    found = list(hardware.products(bench, DEVICE))
    assert [one.params for one in found] == [
        {"dtype": dtype, "size": 64} for dtype in ("float32", "bfloat16", "float16", "int8")
    ]
    assert {one.flops for one in found} == {2 * 64**3}
    assert all(one.bound_s is None for one in found), "a CPU's peak is an estimate"
    # Both libraries of XLA are told, and the samples are the faster one's.
    rates = dict(found[0].figures)
    rates.pop("first_call_s", None)
    assert rates.keys() == {"default_flops_per_s", "eigen_flops_per_s"}
    middle = sorted(found[0].samples_s)[1] if len(found[0].samples_s) == 3 else None
    assert middle is None or found[0].flops / middle == pytest.approx(max(rates.values()))


def test_a_type_that_a_device_lacks_is_left_out_with_a_word(bench, monkeypatch, caplog):
    monkeypatch.setattr(microbenchmarks, "USUAL_PRODUCT", {"cpu": (64, 1)})
    monkeypatch.setattr(microbenchmarks, "dtypes_of", lambda device: ("float99", "float32"))
    found = list(hardware.products(bench, DEVICE))
    assert [one.params["dtype"] for one in found] == ["float32"]
    assert re.match("left out: .*64.*float99", caplog.messages[0])


def test_wrong_results_end_it(bench, monkeypatch):
    monkeypatch.setattr(microbenchmarks, "USUAL_PRODUCT", {"cpu": (64, 1)})
    monkeypatch.setattr(microbenchmarks.Product, "is_right", lambda self: False)
    with pytest.raises(WrongResult, match="cpu:0 gives wrong results") as raised:
        list(hardware.products(bench, DEVICE))
    assert raised.value.exit_code == ExitCode.VERDICT
    assert raised.value.hint == "aifx doctor --stress"


def test_memory_goes_through_every_cache(monkeypatch):
    monkeypatch.setattr(hardware, "cache_bytes", lambda platform: 96 << 20)
    sizes = hardware.memory_sizes("cpu")
    assert sizes[0] <= 32 << 10  # within a first-level cache
    assert sizes[-1] >= 2 * 4 * (96 << 20)  # each of two arrays four times the last cache
    assert all(4 * small == large for small, large in pairwise(sizes))
    assert hardware.memory_sizes("cpu", quick=True) == [sizes[0], sizes[-1]]
    assert hardware.memory_sizes("gpu")[0] in (1 << 20, 2 << 20)


@pytest.mark.slow
def test_memory_counts_bytes_as_stream_does(bench, monkeypatch):
    monkeypatch.setattr(hardware, "memory_sizes", lambda platform, quick: [1 << 14])
    monkeypatch.setattr(hardware, "CALL_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(bench, "quick", False)
    found = {one.params["op"]: one for one in hardware.memory(bench, DEVICE)}
    assert {op: one.num_bytes / (1 << 13) for op, one in found.items()} == {"copy": 2, "scale": 2, "add": 3, "triad": 3}
    assert {one.params["num_bytes"] for one in found.values()} == {1 << 14}
    assert {one.figures["times_cache"] for one in found.values()} == {(1 << 14) / cache_bytes("cpu")}
    monkeypatch.setattr(microbenchmarks.Stream, "num_wrong", lambda self: 3)
    with pytest.raises(WrongResult) as raised:
        list(hardware.memory(bench, DEVICE))
    assert re.search("copy.*3 elements", raised.value.why)


def test_a_size_that_memory_does_not_hold_is_left_out_with_a_word(bench, monkeypatch, caplog):
    monkeypatch.setattr(hardware, "memory_sizes", lambda platform, quick: [1 << 12, 1 << 14, 1 << 16])
    monkeypatch.setattr(hardware, "CALL_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(hardware, "room", lambda devices: 1 << 14)
    made = microbenchmarks.Stream

    def make(device, op, num_bytes, call_bytes):
        if num_bytes == 1 << 12:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return made(device, op, num_bytes, call_bytes)

    monkeypatch.setattr(microbenchmarks, "Stream", make)
    assert [one.params["num_bytes"] for one in hardware.memory(bench, DEVICE)] == [1 << 14]
    left_out = [note for note in caplog.messages if note.startswith("left out: ")]
    assert [re.findall(r"triad|\d+ KiB", note) for note in left_out] == [["triad", "4 KiB"], ["triad", "64 KiB"]]


def test_copies_say_what_they_are(bench, monkeypatch, caplog):
    monkeypatch.setattr(hardware, "COPY_BYTES", {"cpu": (1 << 8, 1 << 12)})
    found = list(hardware.copies(bench, DEVICE))
    assert [one.params for one in found] == [
        {"direction": way, "num_bytes": 1 << 12, "memory": "pageable"} for way in ("to_device", "to_host")
    ]
    assert any("one memory here" in note for note in caplog.messages)
    monkeypatch.setattr(bench, "quick", False)
    sizes = [one.params["num_bytes"] for one in hardware.copies(bench, DEVICE)]
    assert sizes == [1 << 12, 1 << 12, 1 << 8, 1 << 8], "what a bench that is ended has as ceilings is of the largest"


def test_one_device_has_no_collectives(bench, caplog):
    assert list(hardware.collectives(bench, [DEVICE])) == []
    (note,) = caplog.messages
    assert note.startswith("left out: collectives")


def test_a_collective_that_memory_does_not_hold_is_left_out_with_a_word(bench, monkeypatch, caplog):
    def make(devices, kind, size):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(microbenchmarks, "Collective", make)
    assert list(hardware.collectives(bench, [DEVICE, DEVICE])) == []
    assert caplog.messages[0].startswith("left out: all_reduce of 1 MiB")
    assert len(caplog.messages) == len(microbenchmarks.KINDS)


def test_a_machine_without_devices_says_so(tmp_path, monkeypatch):
    def local_devices():
        raise AssertionError  # as JAX 0.12 does of JAX_PLATFORMS=cuda without a plugin

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "local_devices", local_devices)
    with pytest.raises(EnvironmentFault, match="no device") as raised:
        fingerprint(tmp_path)
    assert "cuda" in raised.value.why
    assert raised.value.hint == "aifx doctor"


def test_each_dispatch_is_waited_for(bench, monkeypatch):
    """Its samples are of many calls in a row, the last of which alone is waited for by who takes them."""
    runs, waited = [], []

    def take(run, effort):
        runs.append(run)
        return Samples([1.0], 1, 1.0, 0)

    monkeypatch.setattr(hardware, "sample", take)
    assert [one.name for one in hardware.dispatch(bench)] == ["hardware.dispatch", "hardware.launch"]
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    runs[0]()
    assert len(waited) == 1


KILLED = f"""
import importlib.util, sys

spec = importlib.util.spec_from_file_location("real_hardware", {hardware.__file__!r})
real = sys.modules["real_hardware"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
for found in real.measure(bench):
    yield found
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""The suite up to its first result."""


@pytest.mark.slow
def test_a_launch_that_dies_keeps_what_it_measured_and_that_is_a_ceiling(tmp_path, monkeypatch):
    fork_launches(monkeypatch)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    for name, value in environ(tmp_path, KILLED).items():
        monkeypatch.setenv(name, value)
    found = Launches(Request(suites=["hardware"], quick=True)).run({"hardware": 1})
    assert "hardware" in found.failure.what
    assert "signal 9" in found.failure.why
    assert [one.params for one in found.results] == [{"dtype": "float32", "size": 1024}]
    measured_peaks.keep(found)
    assert find_ceilings("cpu", "cpu").rate("matmul.float32") == found.results[0].flops_per_s


def measured(**more):
    return report(
        result("hardware.matmul", 1.0, noise=0.0, flops=6e11, params={"dtype": "bfloat16", "size": 4096}),
        result("hardware.matmul", 1.0, noise=0.0, flops=7e11, params={"dtype": "bfloat16", "size": 8192}),
        result("hardware.memory", 1.0, noise=0.0, num_bytes=9e12, params={"op": "triad", "num_bytes": 1 << 20}),
        result("hardware.memory", 1.0, noise=0.0, num_bytes=3e12, params={"op": "triad", "num_bytes": 1 << 30}),
        result("hardware.memory", 1.0, noise=0.0, num_bytes=4e12, params={"op": "scale", "num_bytes": 1 << 30}),
        result("hardware.copy", 1.0, noise=0.0, num_bytes=6e10, params={"direction": "to_host", "num_bytes": 1 << 16}),
        result("hardware.copy", 1.0, noise=0.0, num_bytes=5e10, params={"direction": "to_host", "num_bytes": 1 << 28}),
        result(
            "hardware.collective",
            1.0,
            num_bytes=1e11,
            params={"kind": "all_reduce", "num_bytes": 1 << 30},
            figures={"bus_bytes_per_s": 1.75e11},
        ),
        machine=H100,
        **more,
    )


def test_ceilings_are_the_best_product_and_what_no_cache_holds():
    assert measured_peaks.rates_of(measured()) == {
        "matmul.bfloat16": 7e11,
        "all_reduce.8": 1.75e11,
        "memory": 3e12,
        "copy.to_host": 5e10,
    }
    assert measured_peaks.rates_of(report(result("train.step", 0.1), machine=CPU)) == {}


def test_a_rate_of_the_caches_is_no_ceiling_of_the_memory():
    """As a bench leaves it that was ended before it came to the largest."""
    params = {"op": "triad", "num_bytes": 1 << 20}
    cached = result("hardware.memory", 1.0, num_bytes=9e12, params=params, figures={"times_cache": 0.03})
    assert measured_peaks.rates_of(report(cached, machine=H100)) == {}
    large = cached.model_copy(update={"figures": {"times_cache": 8.0}})
    assert measured_peaks.rates_of(report(large, machine=H100)).keys() == {"memory"}


def test_what_falls_far_below_an_earlier_ceiling_is_told_and_lowers_nothing():
    kind = (H100["device_kind"], "gpu")
    keep_ceilings(*kind, {"matmul.bfloat16": 1e12, "memory": 3.1e12})
    told = measured_peaks.keep(measured(notes=["one"]))
    before, note = told.notes
    assert before == "one"
    assert re.search(r"matmul\.bfloat16.* 70%.*aifx doctor --stress", note)
    assert find_ceilings(*kind).rate("matmul.bfloat16") == 1e12
    assert find_ceilings(*kind).rate("all_reduce.8") == 1.75e11


def test_rates_of_a_device_that_gives_wrong_results_are_no_ceilings():
    measured_peaks.keep(measured(failure=Failure(what="gpu:1 gives wrong results", exit_code=int(ExitCode.VERDICT))))
    assert find_ceilings(H100["device_kind"], "gpu").rates == {}


def test_ceilings_that_cannot_be_kept_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIFX_STATE_DIR", str(tmp_path / "file"))
    assert any("Not a directory" in note for note in measured_peaks.keep(measured()).notes)
