"""`mesh.auto`: a run takes the mesh that `aifx plan --fit` finds for its devices, and keeps it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from small_language import write_project

from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config, read_config
from aifx.parallel.connections import free_port
from aifx.training.auto_mesh import hardware_of_all, with_settings

SAVING = """
[checkpoint]
every = 1
keep_last = 5
[mesh]
auto = true
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    write_project(tmp_path, SAVING)
    return Project(tmp_path)


def test_sizes_and_auto_exclude_each_other(project: Project) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(project, ["mesh.fsdp=2", "mesh.tensor=2"])
    assert "mesh.fsdp = 2, mesh.tensor = 2" in str(error.value)


def test_what_is_found_stands_in_the_configuration_of_the_run(project: Project) -> None:
    config = with_settings(
        load_config(project), {"mesh.fsdp": 4, "train.gradient_accumulation": 2, "model.remat": "dots"}
    )
    written = project.root / "written.toml"
    written.write_text(config.to_toml())
    again = read_config(written, project)
    assert (again.mesh.auto, again.mesh.fsdp, again.train.gradient_accumulation) == (False, 4, 2)
    assert vars(again.model)["remat"] == "dots"
    assert again.origin("mesh.fsdp").where == again.origin("model.remat").where == "mesh.auto"
    assert again.origin("mesh.tensor").where == "default"


LOOKING = """
import json
from pathlib import Path
from jax._src import xla_bridge
from aifx.core.project import Project
from aifx.training import auto_mesh

project = Project(Path.cwd())
auto_mesh.may_have_accelerator = lambda: True
found = auto_mesh.own_devices(3, project.run("main"))
print(json.dumps([found, xla_bridge.backends_are_initialized()]))
"""


@pytest.mark.slow
def test_a_new_run_looks_at_accelerators_without_opening_them(project: Project) -> None:
    """Kernels are tried in other processes, before this one opens a TPU."""
    flags = "--xla_force_host_platform_device_count=4"
    environ = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOOKING]
    done = subprocess.run(command, cwd=project.root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, is_open = json.loads(done.stdout)
    assert found == {"platform": "cpu", "kind": "cpu", "count": 3, "slices": [0]}
    assert not is_open


def test_the_devices_of_all_processes() -> None:
    each = [{"platform": "tpu", "kind": "TPU v5 lite", "count": 8, "slices": [index // 2]} for index in range(4)]
    together = hardware_of_all(each)
    assert (together.num_devices, together.topology, together.slices) == (32, "v5e:4x4", 2)


def trained(project: Project, devices: int, *args: str, size: int = 1) -> tuple[str, dict[str, int]]:
    """The output of `aifx train` as `size` processes on stderr, and the sizes of the run's mesh."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environ = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if size > 1:
        place = f"127.0.0.1:{free_port('127.0.0.1')}"
        environ |= {"AIFX_COORDINATOR": place, "AIFX_NUM_PROCESSES": str(size)}
    each = [{**environ, "AIFX_PROCESS_ID": str(index)} if size > 1 else environ for index in range(size)]
    processes = [warm.Process(["train", "--run", "main", *args], project.root, one) for one in each]
    ended = [(process.wait(500), *process.communicate()) for process in processes]
    assert [code for code, *_ in ended] == [0] * size, ended
    mesh = read_config(project.root / "runs/main/config.toml", project).mesh
    assert not mesh.auto
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor, "context": mesh.context}
    return ended[0][2], {axis: size for axis, size in sizes.items() if size not in (1, -1)}


@pytest.mark.slow
def test_a_run_keeps_its_mesh_while_it_has_the_same_devices(project: Project) -> None:
    checkpoints = project.root / "runs/main/checkpoints"
    text, first = trained(project, 4)
    assert "mesh of 4 devices" in text
    shutil.rmtree(checkpoints / "4")  # as if it had been stopped at step 3
    text, kept = trained(project, 4)
    assert "looking for the mesh" not in text
    assert kept == first
    shutil.rmtree(checkpoints / "4")
    text, fewer = trained(project, 2)
    assert "mesh of 2 devices" in text
    assert fewer != first


@pytest.mark.slow
def test_processes_take_the_mesh_that_the_first_one_finds(project: Project) -> None:
    text, found = trained(project, 2, size=2)
    assert "mesh of 4 devices" in text
    (said,) = (line for line in text.splitlines() if line.startswith("mesh.auto found"))
    assert found
    assert all(f"mesh.{axis} = {size}" in said for axis, size in found.items())
