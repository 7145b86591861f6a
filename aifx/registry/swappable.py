"""Whether a server that answers with one version can go on with another: it keeps its compiled programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aifx.core.artifact import Artifact
from aifx.registry.roots import Root
from aifx.registry.state import ModelState

SECTIONS = ("task", "model", "objective", "data", "lora", "finetune")
"""Sections of the settings that programs follow from."""


def swap_obstacles(root: Root, state: ModelState, serving: str, other: str) -> list[str]:
    """Why a server of a version cannot swap to another one: what they have differently, by the file of the version.

    Args:
        serving, other: digests of versions whose files are there.
    """
    first, second = root.artifact(state, serving), root.artifact(state, other)
    if first is None or second is None:
        return ["the files of one of them are gone"]
    settings = (root.settings(state, one) for one in (first, second))
    return [*_differences(first, second), *_changed_settings(*settings)]


def _differences(first: Artifact, second: Artifact) -> Iterator[str]:
    arrays, others = _arrays(first.content), _arrays(second.content)
    if changed := [key for key in {**arrays, **others} if arrays.get(key) != others.get(key)]:
        one, two = (str(found.get(changed[0], "absent")) for found in (arrays, others))
        yield f"{changed[0]} is {one} in one and {two} in the other"
    for path in sorted({path for artifact in (first, second) for path in artifact.files if path.startswith("assets/")}):
        if first.files.get(path) != second.files.get(path):
            yield f"{path} differs"
    for path in sorted({path for artifact in (first, second) for path in artifact.files if path.startswith("code/")}):
        if first.files.get(path) != second.files.get(path):
            yield f"{path} differs"


def _arrays(content: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array by its name."""
    return {
        f"{level}/{name}": (entry["dtype"], tuple(entry["shape"]))
        for level, one in enumerate(content.get("levels", ()))
        for name, entry in one["arrays"].items()
    }


def _changed_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in {**first, **second}:
        if key.partition(".")[0] in SECTIONS and first.get(key) != second.get(key):
            yield f"{key} is {first.get(key)!r} in one and {second.get(key)!r} in the other"
