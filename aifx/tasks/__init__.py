"""Tasks, which a project trains: a model, an objective and data."""

from aifx.tasks.base import Task
from aifx.tasks.registry import describe_task, load_task, open_task

__all__ = ["Task", "describe_task", "load_task", "open_task"]
