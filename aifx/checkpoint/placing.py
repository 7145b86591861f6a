"""Arrays from a checkpoint put where, and as, a program wants them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.checkpoint.digest import is_key
from aifx.checkpoint.manifest import Manifest
from aifx.core.errors import CheckpointError

_KEY_IMPLEMENTATIONS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}
"""jax.random.wrap_key_data's names by the tag in a key's dtype ("key<fry>")."""


def check_fit(folder: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint has exactly `wanted` (shapes and dtypes by name).

    Parts under other top-level names are ignored, so that the parameters can be read without the rest.
    """
    tops = {name.split("/")[0] for name in wanted}
    there = {n: (e.shape, e.dtype) for n, e in manifest.arrays.items() if n.split("/")[0] in tops}
    asked = {name: _signature(leaf) for name, leaf in wanted.items()}
    wrong = [f"{n} is not in it" for n in asked.keys() - there.keys()]
    wrong += [f"{n} is in it only" for n in there.keys() - asked.keys()]
    both = asked.keys() & there.keys()
    wrong += [f"{n} is {_shown(there[n])}, not {_shown(asked[n])}" for n in both if asked[n] != there[n]]
    if wrong:
        more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"checkpoint {folder} does not fit the model",
            "; ".join(sorted(wrong)[:3]) + more,
            "aifx config show    (the run's own configuration is in its config.toml)",
        )


def place(arrays: Mapping[str, np.ndarray[Any, Any]], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays on their devices, with the shardings of `wanted`, typed keys wrapped again."""
    plain = [name for name in arrays if not is_key(wanted[name])]
    shardings = [getattr(wanted[name], "sharding", None) for name in plain]
    placed: dict[str, Any] = dict(zip(plain, jax.device_put([arrays[n] for n in plain], shardings), strict=True))
    for name, array in arrays.items():
        if is_key(wanted[name]):
            tag = str(wanted[name].dtype).removeprefix("key<").removesuffix(">")
            key = jax.random.wrap_key_data(jax.numpy.asarray(array), impl=_KEY_IMPLEMENTATIONS.get(tag, tag))
            placed[name] = jax.device_put(key, getattr(wanted[name], "sharding", None))
    return placed


def _signature(leaf: Any) -> tuple[tuple[int, ...], str]:
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return tuple(data.shape), np.dtype(data.dtype).name


def _shown(signature: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = signature
    return f"{dtype}[{', '.join(map(str, shape))}]"
