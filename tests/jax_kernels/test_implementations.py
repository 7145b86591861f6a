"""The device that an implementation is chosen for: present devices are asked, absent ones are known by name."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jax_kernels.implementations import Device, current_device, make_device
from jax_kernels.ops import OPS, compiled_cases, dtypes

CAPABILITIES = {
    "NVIDIA H800": "9.0",
    "NVIDIA GH200 480GB": "9.0",
    "NVIDIA A800-SXM4-80GB": "8.0",
    "NVIDIA L20": "8.9",
    "NVIDIA L40S": "8.9",
    "NVIDIA RTX 4000 SFF Ada Generation": "8.9",
    "NVIDIA RTX A6000": "8.6",
    "NVIDIA A10G": "8.6",
    "NVIDIA GeForce RTX 5090": "12.0",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "12.0",
    "NVIDIA GB10": "12.1",
    "Quadro RTX 4000": "7.5",
}


def abstract_mesh(platform: str, kind: str) -> AbstractMesh:
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return AbstractMesh((1,), ("data",), abstract_device=device)


def stand_in(monkeypatch: pytest.MonkeyPatch, kind: str, **attributes: str) -> None:
    """In place of the devices here, one of a kind that is not here."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu", device_kind=kind, **attributes)])


@pytest.mark.parametrize(("kind", "capability"), CAPABILITIES.items())
def test_an_absent_gpu_is_known_by_its_name(kind: str, capability: str) -> None:
    major, minor = map(int, capability.split("."))
    with jax.sharding.use_abstract_mesh(abstract_mesh("cuda", kind)):
        device = current_device()
    assert device == Device("gpu", kind, (major, minor))
    kernels = [(op, op.implementations["pallas_triton"]) for op in OPS.values()]
    taken = [
        kernel.unsupported_reason(compiled_cases(op)[0].call(dtypes(op)[0]), device) is None for op, kernel in kernels
    ]
    assert all(taken) == (major >= 8)


@pytest.mark.parametrize("kind", ["NVIDIA T400", "NVIDIA A1000", "NVIDIA B2000", "AMD Instinct MI300X"])
def test_a_name_that_only_begins_alike_is_not_known(kind: str) -> None:
    assert make_device("gpu", kind).compute_capability is None


@pytest.mark.parametrize("kind", ["NVIDIA H800", "a GPU of tomorrow"])
def test_a_present_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    stand_in(monkeypatch, kind, compute_capability="12.1")
    assert current_device() == Device("gpu", kind, (12, 1))
    with jax.sharding.use_abstract_mesh(abstract_mesh("gpu", kind)):  # as in a mesh of the devices here
        assert current_device() == Device("gpu", kind, (12, 1))


def test_a_gpu_without_a_compute_capability_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "AMD Instinct MI300X", compute_capability="gfx942")
    assert current_device().compute_capability is None
    stand_in(monkeypatch, "a plugin's")
    assert current_device().compute_capability is None
