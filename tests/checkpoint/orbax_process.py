"""Run by test_orbax_checkpoints.py: one of two processes that save by Orbax's public API.

    python orbax_process.py FOLDER ADDRESS INDEX

Prints as JSON what it raised when process 1 could not write its part.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LIMIT_S = 10
"""In place of Orbax's own 1,200 s."""


def main() -> None:
    folder, address, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, index, initialization_timeout=300)
    own = np.full(4, index + 1, np.int32)  # the two processes disagree
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(folder / "numpy", args=ocp.args.PyTreeSave({"own": own}))
    if index == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    place = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    values = np.random.default_rng(0).standard_normal((2, 1 << 20)).astype(np.float32)
    sharded = jax.make_array_from_callback(values.shape, place, lambda part: values[part])
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), timeout_secs=LIMIT_S)
    error = None
    try:
        checkpointer.save(folder / "divided", args=ocp.args.PyTreeSave({"divided": sharded}))
        checkpointer.wait_until_finished()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    sys.stdout.write(json.dumps({"error": error}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test has heard both: a process that ends would end the other


if __name__ == "__main__":
    main()
