"""`aifx.toml`: its keys, and the origin of each value of a run. It knows no family, objective or kind of data."""

from aifx.config.config import Config, Difference, compare, model_differences

__all__ = ["Config", "Difference", "compare", "model_differences"]
