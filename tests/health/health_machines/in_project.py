"""A server with GPUs that is checked within a project and under stress, as the probes capture it."""

from __future__ import annotations

import json
from typing import Any

from health_machines.jax_stack import jax_on_gpus
from health_machines.linux import server
from health_machines.stressed import events, stress_file

GPT2_XL = 1_557_611_200
"""Parameters."""


def project(parameters: int = GPT2_XL) -> dict[str, Any]:
    checkpoint = 3 * 4 * parameters
    return {
        "name": "summaries",
        "config": {"is_valid": True, "why": ""},
        "data": {"is_readable": True, "why": "", "files": 12},
        "plan": {
            "parameters": parameters,
            "checkpoint_bytes": checkpoint,
            "training_bytes": checkpoint + 4 * parameters,
            "devices": 4,
        },
        "disk": {
            "folder": "/data/summaries/runs",
            "free_bytes": 10**12,
            "checkpoints": 4,
            "checkpoint_bytes": checkpoint,
            "needed_bytes": 4 * checkpoint,
            "is_writable": True,
        },
    }


def in_project() -> dict[str, str]:
    tree = {**server(), **jax_on_gpus(count=4, memory_bytes=63_700_000_000), **stress_file(events())}
    return {**tree, "aifx-captured/project.json": json.dumps(project())}


MACHINES = {"4 GPUs in a project under stress": in_project}
