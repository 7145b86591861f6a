"""The devices that a program is compiled for and that are not here, as XLA's compilers know them."""

from __future__ import annotations

import jax
from jax.experimental import topologies

from aifx.config.sections import MeshSection
from aifx.core.extras import install_command
from aifx.machine.present import can_compile_for_gpus, can_compile_for_tpus
from aifx.parallel.layout import Layout, layout_over, local_layout
from aifx.planning.hardware import Hardware

_DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}  fpus_per_core: {fpus}  clock_rate_ghz: {clock_ghz}
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {shared_block}  shared_memory_per_core: {shared_core}
  l2_cache_size: {l2}  memory_bandwidth: {bandwidth}  device_memory_size: {memory_bytes}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{kind}"
"""


def missing_compiler(hardware: Hardware) -> str:
    """Why this machine cannot compile for the hardware; empty if it can."""
    if hardware.platform == "cpu":
        return ""
    if hardware.platform == "tpu":
        return "" if can_compile_for_tpus() else f"libtpu is not installed: {install_command('plan-tpu')}"
    if hardware.chip is None or hardware.chip.cuda is None:
        return f"aifx has no description of {hardware.device_kind} for XLA's compiler"
    if can_compile_for_gpus():
        return ""
    command = f"pip install jax-cuda12-plugin=={jax.__version__} nvidia-cuda-nvcc-cu12"
    return f"XLA's compiler for GPUs is not installed: {command}"


def compile_layout(hardware: Hardware, mesh: MeshSection) -> tuple[Layout, tuple[str, ...] | None]:
    """The layout over devices that a compiler knows, and the platform to lower for. Raises what XLA raises."""
    if hardware.platform == "cpu":
        return local_layout(1, mesh), None
    if hardware.platform == "tpu":
        slices = {"num_slices": hardware.slices} if hardware.slices > 1 else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=_topology(hardware), **slices)
        return layout_over(described.devices[: hardware.num_devices], mesh), None
    assert hardware.chip is not None
    assert hardware.chip.cuda is not None
    bandwidth = round(hardware.chip.memory_gb_s * 1e9)
    text = _DESCRIPTION.format(**vars(hardware.chip.cuda), bandwidth=bandwidth, kind=hardware.device_kind)
    nodes = -(-hardware.num_devices // hardware.per_node)
    shape = f"1x{nodes}x{min(hardware.num_devices, hardware.per_node)}"
    described = topologies.get_topology_desc(platform="cuda", target_config=text, topology=shape)
    return layout_over(described.devices[: hardware.num_devices], mesh), ("cuda",)


def places_of(layout: Layout) -> list[tuple[int, ...]]:
    """Of each device, in the order of the mesh: its slice and coordinates, or its node (`aifx.planning.network`)."""
    if layout.platform == "tpu":
        return [(getattr(device, "slice_index", 0) or 0, *device.coords) for device in layout.devices]
    return [(device.coords[1],) for device in layout.devices]


def _topology(hardware: Hardware) -> str:
    """libtpu describes whole hosts: of one chip, a corner of four."""
    generation, _, shape = hardware.topology.partition(":")
    if hardware.num_chips >= 4 and shape:
        return hardware.topology
    generation = generation or {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}.get(
        hardware.device_kind, "tpu7x"
    )
    return f"{generation}:{'2x2' if generation in ('v5e', 'v6e') else '2x2x1'}"
