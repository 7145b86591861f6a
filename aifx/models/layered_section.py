"""Keys of `[model]` that plans and `mesh.auto` may change, of all families of stacked layers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from aifx.config.sections import Remat


@runtime_checkable
class LayeredSection(Protocol):
    """A `[model]` of layers that are alike.

    Attributes:
        scan_layers: compile one layer and loop over it.
        remat: what the backward pass of a layer computes again.
    """

    @property
    def scan_layers(self) -> bool: ...

    @property
    def remat(self) -> Remat: ...
