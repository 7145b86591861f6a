"""Frequencies of rotary positions (Su et al. 2021, arXiv 2104.09864), also beyond a model's first context."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_kernels._ops.rotary import rotary

Scaling: TypeAlias = Literal["none", "linear", "llama3", "yarn"]
Angles: TypeAlias = tuple[jax.Array, jax.Array]
"""Cosines and sines."""

Frequencies: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


# Why and how frequencies are scaled. A pair of features turns by its frequency, in radians per position. A model that
# was trained on `original_len` tokens has never seen the angles that longer sequences give to slow pairs. Dividing a
# frequency by `factor` squeezes the longer sequence into the known angles, but blurs how far apart neighbours are,
# which fast pairs tell. So llama3 and yarn divide the frequencies of slow pairs, keep those of fast ones, and blend
# between: llama3 along the turns that a pair makes in the first context, from `low` to `high`; yarn along the pair's
# index, between the pairs that make `beta_fast` and `beta_slow` turns ("NTK-by-parts").


@dataclass(frozen=True)
class Rotary:
    """The frequencies of a model's rotary positions.

    Attributes:
        width: how many features of a head are turned, in pairs; even.
        theta: base of the frequencies.
        scaling: linear divides all of them by `factor` (Chen et al. 2023, arXiv 2306.15595). llama3 divides those with
            few turns in the first context (Llama 3.1, `apply_scaling` of meta-llama/llama-models). yarn does so along a
            ramp, and enlarges the angles' cosines and sines (Peng et al. 2023, arXiv 2309.00071).
        original_len: tokens of the first context; llama3 and yarn.
        low, high: turns in the first context up to which llama3 divides a frequency, and from which it keeps it.
        beta_slow, beta_fast: the same for yarn.
        attention_factor: of cosines and sines with yarn; 0.1 ln(factor) + 1 if None.
    """

    width: int
    theta: float
    scaling: Scaling = "none"
    factor: float = 1.0
    original_len: int = 0
    low: float = 1.0
    high: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    attention_factor: float | None = None

    def frequencies(self) -> Frequencies:
        """Radians per position of each pair, float64 `[width / 2]`."""
        plain = self.theta ** (-np.arange(0, self.width, 2) / self.width)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            turns = self.original_len * plain / (2 * math.pi)
            kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            return (1 - kept) * plain / self.factor + kept * plain
        if self.scaling == "yarn":
            first, last = math.floor(self._pair(self.beta_fast)), math.ceil(self._pair(self.beta_slow))
            first, last = max(first, 0), min(last, self.width - 1)
            ramp = (np.arange(self.width // 2) - first) / (last - first or 0.001)
            slow = np.clip(ramp, 0.0, 1.0)  # 0 for fast pairs, which come first, and 1 for slow ones
            return slow * plain / self.factor + (1 - slow) * plain
        return plain

    @property
    def scale(self) -> float:
        """The factor of cosines and sines."""
        if self.scaling != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def angles(self, positions: jax.Array, dtype: DTypeLike) -> Angles:
        """Cosines and sines `[batch, seq, width / 2]` of positions `[batch, seq]`, for `rotary` of `dtype` arrays."""
        angles = positions[..., None] * jnp.asarray(self.frequencies(), float)
        wide = jnp.promote_types(dtype, jnp.float32)
        return (self.scale * jnp.cos(angles)).astype(wide), (self.scale * jnp.sin(angles)).astype(wide)

    def _pair(self, turns: float) -> float:
        """The pair, as a real number, that makes so many turns in the first context."""
        return self.width * math.log(self.original_len / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


def turned(x: jax.Array, width: int, angles: Angles) -> jax.Array:
    """Queries or keys `[batch, seq, heads, head_dim]` with the first `width` features of each head turned."""
    if width == x.shape[-1]:
        return rotary(x, *angles)
    return jnp.concatenate([rotary(x[..., :width], *angles), x[..., width:]], axis=-1)
