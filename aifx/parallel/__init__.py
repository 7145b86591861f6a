"""Where arrays live: the mesh of devices and the rules from logical axes to it."""

from aifx.parallel.mesh import (
    DATA_AXIS,
    RULES,
    Rules,
    batch_sharding,
    check_batch_fits,
    make_mesh,
    opt_state_shardings,
    param_shardings,
    place_batch,
    replicated,
)

__all__ = [
    "DATA_AXIS",
    "RULES",
    "Rules",
    "batch_sharding",
    "check_batch_fits",
    "make_mesh",
    "opt_state_shardings",
    "param_shardings",
    "place_batch",
    "replicated",
]
