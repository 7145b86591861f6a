"""Fleets for the tests: nodes with snapshots, and `aifx` that asks them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from aifx.core.facts import from_document
from aifx.health.fleet.report import Node
from aifx.health.report import Finding, Report
from aifx.health.snapshot import Snapshot

AIFX = [sys.executable, "-c", "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"]


def node(name: str, facts: dict[str, Any] | None = None, *findings: Finding) -> Node:
    return Node(name, Report(name, findings, ()), None if facts is None else Snapshot(name, 0.0, from_document(facts)))


def finding(name: str, severity: str = "critical", device: str = "") -> Finding:
    return Finding(name, severity, device, f"{name} is bad", "seen", "limit", "source", f"fix {name}")


def facts_of_a_node(rng: random.Random) -> dict[str, Any]:
    """A healthy one of 8 GPUs: figures with the spread that healthy nodes have."""
    gpus = [
        {
            "device": f"gpu{i}",
            "name": "NVIDIA H100 80GB HBM3",
            "vbios": "96.00.74.00.01",
            "power": {"limit_w": 700.0},
            "temperature": {"gpu_c": round(rng.gauss(55, 4))},
        }
        for i in range(8)
    ]
    rates = [
        {"device": dtype, "tflops": rng.gauss(peak, peak * 0.01)}
        for dtype, peak in (("bfloat16", 700.0), ("float32", 50.0))
    ]
    return {
        "kernel": {"release": "6.8.0-45-generic", "command_line": f"root=UUID={rng.random()} ro iommu=pt"},
        "cpu": {"model": "Xeon", "online": 224},
        "gpus": gpus,
        "nvidia": {"driver": "570.124.06"},
        "jax": {"version": "0.9.0", "packages": {"jax": "0.9.0", "jaxlib": "0.9.0", "nvidia-nccl-cu13": "2.28.3"}},
        "memory": {"total_gib": rng.gauss(2015.5, 0.2)},
        "infiniband": {"active_ports": 8},
        "system": {"mounts": ["/ ext4", "/home nfs4", "/scratch lustre"]},
        "stress": {
            "devices": [{"device": f"gpu{i}", "kind": "H100", "matmul": rates} for i in range(8)],
            "consistency": [
                {"device": f"gpu:{i} {when}", "digest": "1e68932751c82b2a", "made_by": "8 x H100; jax 0.9.0"}
                for when in ("cold", "hot")
                for i in range(8)
            ],
        },
    }


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "AIFX_"))}
    # A node's check is that of this machine: what it finds is not the matter here, but how long JAX takes would be.
    return {**kept, "AIFX_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path), **more}


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`aifx ARGUMENTS` inside this process."""
    import inprocess  # not for the process of fleet_agents.py

    return inprocess.run(arguments, Path(env["HOME"]), env)
