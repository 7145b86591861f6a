"""Whether a server that answers with one version can go on with another.

A server of text keeps its compiled programs. One of predictions loads another model with its own, and keeps its API.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from aifx.core.artifact import Artifact
from aifx.data.spec import SPEC_FILE
from aifx.registry.roots import Root
from aifx.registry.state import ModelState

API_SECTIONS = ("task", "objective", "data")
"""Sections of the settings that the rows and answers of a server follow from."""

SECTIONS = (*API_SECTIONS, "model", "lora", "finetune")
"""Sections of the settings that programs follow from."""


def swap_obstacles(root: Root, state: ModelState, serving: str, other: str) -> list[str]:
    """Why a server of a version cannot swap to another one: what they have differently, by the file of the version.

    Args:
        serving, other: digests of versions whose files are there.
    """
    first, second = root.artifact(state, serving), root.artifact(state, other)
    if first is None or second is None:
        return ["the files of one of them are gone"]
    predicts = _predicts(first) and _predicts(second)
    differences = (_changed_api if predicts else _changed_programs)(first, second)
    old, new = (root.settings(state, version) for version in (first, second))
    return [*differences, *_changed_settings(old, new, API_SECTIONS if predicts else SECTIONS)]


def _predicts(version: Artifact) -> bool:
    outputs = version.content.get("outputs", {})
    return bool(outputs) and "tokens" not in outputs


def _changed_programs(first: Artifact, second: Artifact) -> Iterator[str]:
    yield from _changed("", _arrays(first.content), _arrays(second.content))
    yield from _other_files(first, second)


def _changed_api(first: Artifact, second: Artifact) -> Iterator[str]:
    """Other columns or classes. Means, bins and categories of columns are of no concern to clients."""
    yield from _changed("input ", *(_without_categories(one.content.get("inputs", {})) for one in (first, second)))
    yield from _changed("output ", first.content["outputs"], second.content["outputs"])
    yield from _other_files(first, second, but=(f"assets/{SPEC_FILE}",))


def _without_categories(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in found.items() if key != "categories"} if isinstance(found, dict) else found
        for name, found in inputs.items()
    }


def _changed(kind: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """The first key with another value."""
    key = next((key for key in {**one, **other} if one.get(key) != other.get(key)), None)
    if key is not None:
        yield f"{kind}{key} is {one.get(key, 'absent')} in one and {other.get(key, 'absent')} in the other"


def _other_files(first: Artifact, second: Artifact, but: Collection[str] = ()) -> Iterator[str]:
    """The assets, then the code, that differ."""
    for path in sorted({*first.files, *second.files} - {*but}):
        if path.startswith(("assets/", "code/")) and first.files.get(path) != second.files.get(path):
            yield f"{path} differs"


def _arrays(content: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array by its name."""
    return {
        f"{level}/{name}": (entry["dtype"], tuple(entry["shape"]))
        for level, one in enumerate(content.get("levels", ()))
        for name, entry in one["arrays"].items()
    }


def _changed_settings(first: Mapping[str, Any], second: Mapping[str, Any], sections: Collection[str]) -> Iterator[str]:
    for key in {**first, **second}:
        if key.partition(".")[0] in sections and first.get(key) != second.get(key):
            yield f"{key} is {first.get(key)!r} in one and {second.get(key)!r} in the other"
