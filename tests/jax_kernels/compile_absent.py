"""Compile one case of a kernel, as training or generation runs it, for a device that this machine does not have.

    python tests/jax_kernels/compile_absent.py OP IMPLEMENTATION TARGET CASE DTYPE [all]

Needs the compilers of requirements-compilers.lock beside jax: XLA's GPU plugin compiles for a GPU that is described to
it, libtpu for a slice that is named. A process each, for some inputs abort the compiler; give it a time limit. Prints a
JSON document: what the implementation refuses, or of its first config (of each, with "all") the memory and the number
of kernels. What the compiler refuses (blocks that overflow shared memory or VMEM) ends it with its error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import jax.experimental.pallas.tpu
import jax.experimental.pallas.triton
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jax_kernels.implementations import current_device
from jax_kernels.ops import OPS, compiled_cases

# XLA's description of a GPU, from NVIDIA's data sheets and CUDA's device properties.
GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}  fpus_per_core: {fpus}  clock_rate_ghz: {clock_ghz}
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {shared_block}  shared_memory_per_core: {shared_core}
  l2_cache_size: {l2}  memory_bandwidth: {bandwidth}  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{kind}"
"""
H100 = {
    "kind": "NVIDIA H100 80GB HBM3",
    "major": 9,
    "cores": 132,
    "fpus": 128,
    "clock_ghz": 1.98,
    "shared_block": 232448,
    "shared_core": 233472,
    "l2": 52428800,
    "bandwidth": 3352320000000,
    "memory": 84929347584,
}
A100 = {
    "kind": "NVIDIA A100-SXM4-80GB",
    "major": 8,
    "cores": 108,
    "fpus": 64,
    "clock_ghz": 1.41,
    "shared_block": 166912,
    "shared_core": 167936,
    "l2": 41943040,
    "bandwidth": 2039000000000,
    "memory": 84929347584,
}
GPUS: dict[str, dict[str, Any]] = {"h100": H100, "a100": A100}
PALLAS = ("gpu.triton", "mosaic_gpu", "tpu_custom_call")
"""XLA's names for programs that are Pallas kernels."""
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def main() -> None:
    *words, every = [*sys.argv[1:6], sys.argv[6:] == ["all"]]
    sys.stdout.write(json.dumps(compile_case(*words, every)) + "\n")


def compile_case(name: str, implementation: str, target: str, case: str, dtype: str, every: bool) -> dict[str, Any]:
    """The reason that an implementation refuses a case, or the results of compiling its first config, or every one."""
    op = OPS[name]
    call = next(c for c in compiled_cases(op) if c.name == case).call(dtype)
    mesh, platform, kind, cores = _describe(target)
    device = AbstractDevice(device_kind=kind, num_cores=cores, platform=platform)
    axes = (AxisType.Auto,)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("device",), axis_types=axes, abstract_device=device)):
        here = current_device()
        refusal = op.implementations[implementation].unsupported_reason(call, here)
        compiled = []
        if refusal is None:
            configs = op.implementations[implementation].configs(call, here)
            compiled = [
                _compile(op, implementation, call, config, mesh, platform) for config in configs[: None if every else 1]
            ]
    return {"refuses": refusal, "compiled": compiled}


def _describe(target: str) -> tuple[Mesh, str, str, int]:
    """A mesh of one device of `target`, its platform, kind and cores."""
    if target in TPUS:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=TPUS[target])
        return _mesh(topology), "tpu", topology.devices[0].device_kind, 1
    gpu = GPUS[target]
    topology = topologies.get_topology_desc(platform="cuda", target_config=GPU.format(**gpu), topology="1x1x1")
    return _mesh(topology), "gpu", gpu["kind"], gpu["cores"]


def _mesh(topology: Any) -> Mesh:
    return Mesh(np.array(topology.devices[:1]), ("device",))


def _compile(op: Any, implementation: str, call: Any, config: Any, mesh: Mesh, platform: str) -> dict[str, Any]:
    program, make = op.workload(call, op.implementations[implementation].run, config)
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), jax.eval_shape(make))
    lowering = ("tpu",) if platform == "tpu" else ("cuda",)
    compiled = jax.jit(program).trace(*shapes).lower(lowering_platforms=lowering).compile()
    targets = re.findall(r'custom_call_target="([^"]+)"', compiled.as_text())
    kernels = sum(any(name in target for name in PALLAS) for target in targets)
    return {
        "config": dict(config),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": kernels,
    }


if __name__ == "__main__":
    main()
