"""Compilers for absent devices change neither the device nor the start of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aifx.machine import present

PACKAGES = {
    "libtpu": "def get_library_path():\n    return '/nonexistent/libtpu.so'\n",
    "jax_cuda12_plugin": "",
    # As the real one does without CUDA's libraries.
    "jax_plugins/xla_cuda12": """
import os
def initialize():
    if "cuda" in os.environ.get("JAX_PLATFORMS", "cuda"):
        raise RuntimeError("cuDNN not found.")
""",
}


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with packages that look to JAX as the compilers do."""
    for name, text in PACKAGES.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(present, "NVIDIA", ())
    monkeypatch.setattr(present, "PCI", tmp_path / "none")
    return tmp_path


def test_without_compilers_nothing_is_decided() -> None:
    if not present.can_compile_for_tpus() and not present.can_compile_for_gpus():
        assert present.platforms_here({}) is None


def test_compilers_of_absent_devices_leave_the_cpu(compilers: Path) -> None:
    assert present.platforms_here({}) == "cpu"


def test_the_user_decides(compilers: Path) -> None:
    assert present.platforms_here({"JAX_PLATFORMS": "tpu"}) is None


def test_a_device_that_is_here_is_tried(compilers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(present, "tpu_generations", lambda: ["v5e"])
    assert present.platforms_here({}) == "tpu,cpu"
    monkeypatch.setattr(present, "tpu_generations", list)
    monkeypatch.setattr(present, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(present, "_has_cudnn", lambda: True)
    assert present.platforms_here({}) == "cuda,cpu"
    monkeypatch.setattr(present, "_has_cudnn", lambda: False)
    assert present.platforms_here({}) is None  # JAX says what the GPU lacks


def test_devices_of_other_makers_are_left_to_jax(compilers: Path) -> None:
    (compilers / "jax_plugins" / "xla_rocm7").mkdir()
    assert present.platforms_here({}) is None


def test_tpus_on_the_bus_are_found(tmp_path: Path) -> None:
    for name, vendor, kind in (("0", "0x1ae0", "0x0063"), ("1", "0x1ae0", "0x0042"), ("2", "0x10de", "0x2330")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "device").write_text(kind + "\n")
    assert present.tpu_generations(tmp_path) == ["v5e"]  # 0x0042 is a network card of Google's


@pytest.mark.slow
@pytest.mark.skipif(present.has_nvidia_gpu() or bool(present.tpu_generations()), reason="it has an accelerator")
def test_a_command_starts_as_without_compilers(compilers: Path) -> None:
    """The real JAX in a process of its own finds the CPU and prints nothing; without help it complains."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAX_PLATFORM")}
    outputs = []
    for before in ("", "from aifx.verbs.process import ignore_compilers; ignore_compilers(); "):
        done = subprocess.run(
            [sys.executable, "-c", f"{before}import jax; print(jax.devices()[0].platform)"],
            env={**environ, "PYTHONPATH": str(compilers)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append((done.stdout, done.stderr))
    assert "cuDNN not found" in outputs[0][1]
    assert outputs[1] == ("cpu\n", "")
