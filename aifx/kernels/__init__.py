"""Which implementation of each op of `jax_kernels` a run uses."""
