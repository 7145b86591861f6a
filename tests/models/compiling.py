"""Programs that run once or twice: LLVM's optimization would take longer than all that they compute."""

from functools import partial

import jax

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
