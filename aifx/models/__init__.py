"""Families of models: each package here is one, and its `FAMILY` describes it. Importing this package imports none."""

from dataclasses import dataclass

from aifx.config.parts import Kind


@dataclass(frozen=True)
class Family(Kind):
    """A family of models, whose `make` is (section, DataSpec) -> Model.

    Attributes:
        hub: the module with its maps to architectures of Hugging Face, if it has any: `ARCHITECTURES`.
        is_trained: False for one that aifx only embeds with: no project can name it.
    """

    hub: str | None = None
    is_trained: bool = True
