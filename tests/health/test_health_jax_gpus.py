"""JAX on a machine whose NVML shows GPUs: the real nvidia-ml-py, over the library that test_health_nvml builds."""

import json
import subprocess
import sys

import pytest
from test_health_jax import found
from test_health_nvml import COMPILER, build, eight

from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.host import Host
from aifx.health.probes import environment
from aifx.health.probes import jax as probe
from aifx.health.rules import load_rules
from aifx.health.snapshot import Snapshot

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the fake libnvidia-ml.so.1 with")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("jax-nvml"))


@pytest.fixture
def gpus(library, tmp_path, monkeypatch):
    """Eight H100, of which this JAX knows nothing."""
    (tmp_path / "scenario.txt").write_text(eight())
    monkeypatch.setenv("FAKE_NVML_SCENARIO", str(tmp_path / "scenario.txt"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("gpus")
def test_gpus_without_the_plugin_are_found_with_the_line_that_installs_it():
    facts = probe.collect(Host())
    jax = facts["jax"]
    if jax["platform"] != "cpu":
        pytest.skip("this JAX has a plugin")
    assert (jax["gpus_seen"], jax["gpus_visible"], jax["gpus"]) == (8, 8, 0)
    assert found(facts) == ["jax.gpu.unused"]
    rule = load_rules()["jax.gpu.unused"]
    facts["environment"] = environment.collect(Host())
    (finding,) = evaluate_rules([rule], Snapshot("here", 0.0, facts)).findings
    assert finding.action.endswith(f'pip install -U "jax[cuda13]=={jax["version"]}"')


@pytest.mark.slow
@pytest.mark.usefixtures("gpus")
def test_gpus_that_the_operator_hides_are_not_missed(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    facts = probe.collect(Host())
    assert (facts["jax"]["gpus_seen"], facts["jax"]["gpus_visible"]) == (8, 0)
    assert found(facts) == []


@pytest.mark.usefixtures("gpus")
def test_a_load_is_watched_on_each_gpu(tmp_path):
    hot = "2:nvmlDeviceGetCurrentClocksEventReasons = 68\n2:nvmlDeviceGetPowerUsage = !3\n"
    (tmp_path / "scenario.txt").write_text(hot + eight())
    command = [sys.executable, "-P", "-m", "aifx.health.stress.sensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        process.kill()
    assert [name for name in printed if name.startswith("GPU")] == [f"GPU {i}" for i in range(8)]
    for i in range(8):
        gpu = printed[f"GPU {i}"]
        assert 0 < gpu["temperature_c"] < 120
        assert gpu["clock_mhz"] > 0
        assert gpu["reasons"] == (["hardware thermal"] if i == 2 else []), "the power cap (bit 2) is no fault"
        assert (gpu["power_w"] is None) == (i == 2)
