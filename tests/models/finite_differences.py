"""Gradients against differences of the function in float64, one array at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from compiling import jit

STEP = 1e-5


def assert_gradients(loss, params, *, rtol=1e-6):
    """`loss(params)` changes along a random direction of each array as its gradient says. Call with x64 enabled.

    The slope is the central difference over five points, whose error falls with the fourth power of the step.
    """
    gradient = jax.tree_util.tree_leaves_with_path(jit(jax.grad(loss))(params))
    loss = jit(loss)
    leaves, tree = jax.tree.flatten(params)
    for i, (path, derivative) in enumerate(gradient):
        direction = np.random.default_rng(i).normal(size=derivative.shape)
        direction /= np.linalg.norm(direction)
        at = [
            float(loss(jax.tree.unflatten(tree, [*leaves[:i], leaves[i] + n * STEP * direction, *leaves[i + 1 :]])))
            for n in (1, -1, 2, -2)
        ]
        slope = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * STEP)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(jnp.sum(derivative * direction), slope, rtol=rtol, atol=1e-8, err_msg=name)
