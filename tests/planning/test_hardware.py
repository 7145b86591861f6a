"""Names of hardware, and what they stand for."""

from __future__ import annotations

import json
import math

import pytest

from aifx.core.errors import ConfigError, UsageError
from aifx.machine.catalogue import find_accelerator
from aifx.planning.hardware import GPU_NAMES, Hardware, find_hardware, hardware_names, hardware_of


@pytest.mark.parametrize(
    ("name", "devices", "topology", "processes"),
    [
        ("v5p-512", 256, "v5p:4x8x8", 64),
        ("v5p-8", 4, "v5p:2x2x1", 1),
        ("v4-32", 16, "v4:2x2x4", 4),
        ("v5e-256", 256, "v5e:16x16", 64),
        ("v5litepod-8", 8, "v5e:2x4", 1),
        ("v6e-1", 1, "v6e:1x1", 1),
        ("tpu7x-8", 16, "tpu7x:2x2x2", 2),
        ("v5e-256x16", 4096, "v5e:16x16", 1024),
        ("h100x8", 8, "", 1),
        ("H100-PCIe", 1, "", 1),
        ("h200x16", 16, "", 2),
    ],
)
def test_a_name_stands_for_devices(name: str, devices: int, topology: str, processes: int) -> None:
    """v4 and v5p count TensorCores, two per chip; v5e and v6e count chips. A TPU7x chip is two JAX devices."""
    found = find_hardware(name)
    assert (found.num_devices, found.topology, found.processes) == (devices, topology, processes)
    assert find_accelerator(found.device_kind) is found.chip


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("h10x8", "h100x8"), ("v5e-250", "v5e-256"), ("v5p-511", "v5p-512"), ("v5e256", "v5e-256"), ("a100x0", "a100x8")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{nearest}'"):
        find_hardware(name)


def test_a_word_that_is_like_none_is_not_answered_with_all_of_them() -> None:
    with pytest.raises(UsageError) as caught:
        find_hardware("foo")
    assert len(str(caught.value)) < 150
    assert caught.value.hint == "aifx plan --list"


def test_a_generation_without_figures_is_refused() -> None:
    with pytest.raises(UsageError, match="TPU v3"):
        find_hardware("v3-8")


def test_every_offered_name_is_known() -> None:
    for name in hardware_names():
        assert find_hardware(name).num_devices >= 1
    for name in GPU_NAMES:
        assert find_hardware(name).capacity_bytes


def test_slices_of_three_dimensions_are_as_cubic_as_can_be() -> None:
    for name in (name for name in hardware_names() if name.startswith("v5p-")):
        found = find_hardware(name)
        shape = [int(side) for side in found.topology.partition(":")[2].split("x")]
        assert math.prod(shape) == found.num_chips
        assert max(shape) <= 4 * min(shape)


def test_this_machine_has_a_processor_or_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_hardware("this")
    assert found.is_here
    if found.platform == "cpu":
        assert (found.num_devices, found.capacity_bytes) == (1, None)
        monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
        assert find_hardware("this").num_devices == 4
        assert find_hardware("this", 2).num_devices == 2


@pytest.mark.parametrize(
    ("platform", "kind", "count", "slices", "like"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", 32, 1, "h100x32"),
        ("tpu", "TPU v5 lite", 256, 1, "v5e-256"),
        ("tpu", "TPU v5 lite", 512, 2, "v5e-256x2"),
        ("cpu", "cpu", 4, 1, None),
    ],
)
def test_devices_of_a_job_are_the_hardware_of_a_name(
    platform: str, kind: str, count: int, slices: int, like: str | None
) -> None:
    found = hardware_of(platform, kind, count, slices)
    assert Hardware.from_document(json.loads(json.dumps(found.document()))) == found
    assert (found.num_devices, found.is_here) == (count, True)
    if like is not None:
        named = find_hardware(like)
        assert (found.chip, found.topology, found.slices, found.num_chips) == (
            named.chip,
            named.topology,
            named.slices,
            named.num_chips,
        )


def test_more_devices_than_there_are_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.planning.hardware.open_gpus", dict)
    monkeypatch.setattr("aifx.planning.hardware.tpu_generations", lambda: ["v5e"] * 4)
    assert find_hardware("this").num_devices == 4
    with pytest.raises(ConfigError, match=r"train.devices = 8\b.*\b4\b"):
        find_hardware("this", 8)
