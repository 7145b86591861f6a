"""`aifx.toml`: its keys, and where each value of a run came from."""

from aifx.config.config import Config, Difference, compare, model_differences
from aifx.config.load import load_config, project_code, project_sections, read_config
from aifx.config.schema import Setting, json_schema, settings

__all__ = [
    "Config",
    "Difference",
    "Setting",
    "compare",
    "json_schema",
    "load_config",
    "model_differences",
    "project_code",
    "project_sections",
    "read_config",
    "settings",
]
