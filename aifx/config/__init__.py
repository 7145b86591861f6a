"""`aifx.toml`: what may stand in it, and where each value of a run came from."""

from aifx.config.config import Config, Difference, compare, compare_free, compare_rounding
from aifx.config.load import load_config, own_task_kind, own_task_sections, read_config
from aifx.config.origins import Origin
from aifx.config.schema import Setting, json_schema, settings
from aifx.config.task_sections import BUNDLED_KINDS, import_task, section_types

__all__ = [
    "BUNDLED_KINDS",
    "Config",
    "Difference",
    "Origin",
    "Setting",
    "compare",
    "compare_free",
    "compare_rounding",
    "import_task",
    "json_schema",
    "load_config",
    "own_task_kind",
    "own_task_sections",
    "read_config",
    "section_types",
    "settings",
]
