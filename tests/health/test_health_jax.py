"""The JAX probes on this machine and in environments that are made wrong on purpose."""

import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata

import pytest
from health_machines.jax_stack import VERSION, packages

from aifx.commands.main import run
from aifx.core.facts import Absent, Unknown, to_document
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.host import Host
from aifx.health.probes import environment
from aifx.health.probes import jax as probe
from aifx.health.rules import load_rules
from aifx.health.snapshot import Snapshot
from aifx.machine.present import tpu_generations

JAX_RULES = [rule for rule in load_rules().values() if rule.family == "jax"]


def found(facts):
    """Ids of what the JAX rules find."""
    beside = {"environment": environment.collect(Host()), "tpu": Absent("there is no TPU")}
    return [f.id for f in evaluate_rules(JAX_RULES, Snapshot("here", 0.0, beside | facts)).findings]


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_this_environment_fits_together():
    facts = probe.collect(Host())
    assert facts["jax"]["starts"] is True
    assert facts["jax"]["num_devices"] == len(facts["jax"]["devices"]) >= 1
    assert all(d["computes"] and d["is_right"] for d in facts["jax"]["devices"])
    by = {row["device"]: row for row in facts["jax"]["requirements"]}
    assert by["jaxlib for jax"]["fits"] is True
    assert facts["jax"]["fits_aifx"] is True
    assert facts["python"]["is_supported"] is True


@pytest.mark.slow
def test_an_unknown_flag_is_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_async_all_reduce_of_old=true --xla_no_such_flag=1")
    facts = probe.collect(Host())
    assert facts["jax"]["starts"] is False
    assert any("xla_no_such_flag" in flag for flag in facts["jax"]["refused_flags"])
    assert found(facts)[:2] == ["jax.flags.refused", "jax.backend.failed"]


@pytest.mark.slow
def test_a_backend_that_raises_is_reported(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    facts = probe.collect(Host())
    assert facts["jax"]["starts"] is False
    assert "no_such_platform" in facts["jax"]["error"]
    assert found(facts) == ["jax.backend.failed"]


@pytest.mark.slow
@pytest.mark.skipif(bool(tpu_generations()), reason="it has a TPU")
@pytest.mark.usefixtures("on_cpu")
def test_a_compiler_for_absent_tpus_stops_no_launch(tmp_path, monkeypatch, capfd):
    """A launch stops at the exit code 1."""
    folder = tmp_path / "libtpu-0.0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: libtpu\nVersion: 0.0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = run(["doctor", "--only", "jax", "--json", "--with-snapshot"])
    report = json.loads(capfd.readouterr().out)
    assert report["snapshot"]["facts"]["jax"]["packages"]["libtpu"] == "0.0.1"
    assert "critical" not in {finding["severity"] for finding in report["findings"]}
    assert code != 1


JAXES = {
    "import time; time.sleep(3600)": Unknown,
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": False,
    "raise ImportError('libcudnn.so.9: cannot open shared object file')": False,
    "raise RuntimeError('The TPU is already in use by process with pid 4711.')": Absent,
}


@pytest.mark.parametrize("source", JAXES)
def test_a_jax_that_hangs_crashes_or_is_in_use(source, tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "DEVICES_LIMIT_S", 1.0 if "sleep" in source else 60.0)
    facts = probe.collect(Host())
    starts, wanted = facts["jax"]["starts"], JAXES[source]
    assert isinstance(starts, wanted) if isinstance(wanted, type) else starts is wanted
    assert found(facts) == ([] if wanted is Absent else ["jax.backend.failed"])
    assert facts["jax"]["version"] == metadata.version("jax")


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 65536 bytes."


def test_a_device_whose_memory_a_job_has_is_no_fault(tmp_path, monkeypatch):
    """As where the check runs beside a job: nothing is found, and what was not looked at is skipped."""
    (tmp_path / "jax.py").write_text(
        textwrap.dedent(f"""
        class Device:
            platform, id, device_kind = "gpu", 0, "NVIDIA H100 80GB HBM3"
            def memory_stats(self):
                return {{"bytes_limit": 1000}}
        def local_devices():
            return [Device()]
        def jit(function):
            raise RuntimeError({OUT_OF_MEMORY!r})
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = probe.collect(Host())
    (device,) = facts["jax"]["devices"]
    assert isinstance(device["computes"], Absent)
    assert OUT_OF_MEMORY in device["error"]
    assert found(facts) == []
    report = evaluate_rules(
        JAX_RULES, Snapshot("here", 0.0, {"environment": environment.collect(Host()), "tpu": Absent(""), **facts})
    )
    assert any(s.id == "jax.device.failed" and "another process" in s.why for s in report.skipped)


def test_wheels_that_write_the_same_library_are_named(tmp_path, monkeypatch):
    library = tmp_path / "nvidia/nccl/lib/libnccl.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    for name in ("nvidia_nccl_cu12", "nvidia_nccl_cu13"):
        folder = tmp_path / f"{name}-2.28.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 2.28.3\n")
        (folder / "RECORD").write_text("nvidia/nccl/lib/libnccl.so.2,,\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "aifx.health.jax_probe", "packages"]
    document = json.loads(subprocess.run(command, env=environ, capture_output=True, check=True, timeout=120).stdout)
    assert document["overlaps"] == ["nvidia-nccl-cu12 and nvidia-nccl-cu13"]
    assert document["packages"]["nvidia-nccl-cu13"] == "2.28.3"


@pytest.mark.parametrize(
    ("text", "count"),
    [("0,1,2", 3), ("", 0), ("-1", 0), ("0,9,1", 1), ("3, 2", 2), ("0,0", 1), ("GPU-8f2b,GPU-77aa", 2), ("none", 0)],
)
def test_what_cuda_shows(text, count):
    nvml = {"gpus": 4, "driver": "580.95"}
    assert probe._gpus(nvml, text)["gpus_visible"] == count
    assert probe._gpus(nvml, text, "0,1")["gpus_visible"] == min(count, 2)
    assert isinstance(probe._gpus({**nvml, "mig": True}, text)["gpus_visible"], Absent)


@pytest.mark.parametrize(
    ("driver", "plugin", "extra"),
    [
        ("580.95.05", "", "cuda13"),
        ("550.54", "", "cuda12"),
        ("580.95.05", "cuda12", "cuda12"),
        ("535.1", "cuda13", "cuda12"),
    ],
)
def test_the_install_line_suits_the_driver(driver, plugin, extra):
    document = packages() | {"nvml": {"driver": driver, "gpus": 8}}
    if plugin:
        document["packages"][f"jax-{plugin}-plugin"] = VERSION
    assert probe.install_line(document, has_tpu=False) == f'pip install -U "jax[{extra}]=={VERSION}"'


@pytest.mark.parametrize(("has_tpu", "extra"), [(True, "[tpu]"), (False, "")])
def test_the_install_line_has_libtpu_for_tpus(has_tpu, extra):
    document = packages()
    document["packages"]["libtpu"] = "0.0.52"
    assert probe.install_line(document, has_tpu) == f'pip install -U "jax{extra}=={VERSION}"'


def test_the_install_line_asks_for_a_version_that_aifx_takes():
    document = packages() | {"installer": "uv"}
    document["packages"]["jax"] = "0.7.2"
    assert probe.install_line(document, has_tpu=False) == 'uv pip install -U "jax<0.13,>=0.10.2"'


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/proc/no-folder-can-be-made-here")
    assert probe._cache()["is_writable"] is False
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "new" / "folder"))
    assert probe._cache()["is_writable"] is True
    assert not (tmp_path / "new").exists()


def test_no_variable_is_looked_at_that_is_not_named(monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PRIVATE_PLACE"):
        monkeypatch.setenv(name, "hunter2hunter2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/dump --xla_private=hunter2hunter2")
    monkeypatch.setenv("CUDA_INJECTION64_PATH", "/opt/injected?token=hunter2hunter2")
    text = json.dumps(to_document(environment.collect(Host())))
    assert "hunter2" not in text
    assert "--xla_dump_to=/tmp/dump" in text
