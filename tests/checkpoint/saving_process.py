"""Run by test_kill.py: saves step after step as fast as it can, and says what it found and what it committed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.best_by import LOSS, score_of
from aifx.config.sections import CheckpointSection
from aifx.core.logs import log_lines


def state_of(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    arrays = {str(i): jnp.asarray(rng.standard_normal((128, 256), np.float32)) for i in range(12)}
    return {"params": arrays, "step": jnp.int32(step)}


def main(directory: Path) -> None:
    def write(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    checkpoints = Checkpoints(
        directory, CheckpointSection(keep_last=2, keep_best=1), on_commit=lambda info: write(f"committed {info.step}")
    )
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))
    with log_lines(write):
        found = checkpoints.latest_good(abstract)
    step = found.step if found else 0
    if found:
        assert all(map(np.array_equal, jax.tree.leaves(found.state), jax.tree.leaves(state_of(step))))
        assert found.host == {"step": step}
    assert not list(directory.glob("*.unfinished"))
    write(f"found {step}")
    while True:
        step += 1
        loss = 1.0 + (step * 7 % 5)
        score = score_of(LOSS, {"loss": loss})
        checkpoints.save(step, state_of(step), host={"step": step}, validation_loss=loss, score=score)
        write(f"saving {step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
