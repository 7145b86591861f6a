"""A server whose GPUs are looked at through JAX alone."""

from __future__ import annotations

from health_machines.jax_stack import jax_on_gpus
from health_machines.linux import server

MACHINES = {"JAX on 8 GPUs": lambda: {**server(), **jax_on_gpus()}}
