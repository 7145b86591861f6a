"""Numbers of pictures that drift: brightness, sharpness, and the distance in the model's last layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

BRIGHTNESS, SHARPNESS, DISTANCE = ".brightness", ".sharpness", ".distance"
"""After the name of a column of pictures."""

NEIGHBOURS = 10

LUMA = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in brightness (ITU-R BT.601)."""


def light_of(pictures: Iterable[Any]) -> tuple[Any, Any]:
    """The brightness of pictures from 0 to 1, and their sharpness: NaN for what is no picture."""
    found = np.array([_light(picture) for picture in pictures], np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _light(picture: Any) -> tuple[float, float]:
    pixels = np.asarray(picture if picture is not None else 0, np.float32)
    if pixels.ndim == 3:
        pixels = pixels[..., :3] @ LUMA.astype(np.float32) if pixels.shape[2] >= 3 else pixels[..., 0]
    if pixels.ndim != 2 or min(pixels.shape) < 3:
        return math.nan, math.nan
    # The variance of the Laplacian tells sharp from blurred (Pech-Pacheco et al., Diatom autofocusing in brightfield
    # microscopy, 2000). It is taken relative to the picture's own variance, which less light or contrast changes alike.
    sides = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    spread = float(pixels.var())
    sharpness = float((sides - 4 * pixels[1:-1, 1:-1]).var()) / spread if spread > 0 else 0.0
    return float(pixels.mean()) / 255, sharpness


def distances(features: Any, known: Any, *, are_known: bool = False) -> Any:
    """The cosine distance of each row of features to its tenth-nearest known one.

    Of pictures that the model was not made for, it is large (Sun et al., Out-of-distribution detection with deep
    nearest neighbors, 2022).

    Args:
        features: `[rows, embed]`
        known: `[known, embed]`
        are_known: whether both are the same rows, none of which is its own neighbour.
    """
    alike = _unit(features) @ _unit(known).T
    if are_known:
        np.fill_diagonal(alike, -np.inf)
    return 1 - np.partition(alike, -NEIGHBOURS)[:, -NEIGHBOURS]


def _unit(vectors: Any) -> Any:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
