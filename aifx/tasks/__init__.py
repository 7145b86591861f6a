"""What a project trains: a `Task` joins a model with data, an objective and metrics."""

from aifx.tasks.base import Model, Sums, Task, Totals
from aifx.tasks.registry import BUNDLED, create_task, load_task, task_class
from aifx.tasks.trained import LoadedGenerator, RestoredRun, load_generator, restore_run

__all__ = [
    "BUNDLED",
    "Model",
    "Sums",
    "Task",
    "Totals",
    "RestoredRun",
    "LoadedGenerator",
    "create_task",
    "load_task",
    "restore_run",
    "load_generator",
    "task_class",
]
