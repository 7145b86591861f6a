"""`aifx.toml`: its keys, and the origin of each value of a run. It knows no family, objective or kind of data."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifx.config.config import Config, Difference, compare, model_differences

__all__ = ["Config", "Difference", "compare", "model_differences"]


def __getattr__(name: str) -> Any:
    """Import the names above when they are used: `aifx registry` needs gates alone."""
    if name not in __all__:
        raise AttributeError(name)
    from aifx.config import config

    return getattr(config, name)
