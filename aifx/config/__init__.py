"""`aifx.toml`: its keys, and where each value of a run came from."""

from aifx.config.config import Config, Difference, compare, compare_free, compare_rounding
from aifx.config.kinds import DataKind, Family, ObjectiveKind
from aifx.config.load import load_config, project_code, project_sections, read_config
from aifx.config.origins import Origin
from aifx.config.schema import Setting, json_schema, settings

__all__ = [
    "Config",
    "DataKind",
    "Difference",
    "Family",
    "ObjectiveKind",
    "Origin",
    "Setting",
    "compare",
    "compare_free",
    "compare_rounding",
    "json_schema",
    "load_config",
    "project_code",
    "project_sections",
    "read_config",
    "settings",
]
