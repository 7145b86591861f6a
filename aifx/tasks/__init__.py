"""What a project trains: a `Task` joins a model with data, an objective and metrics."""

from aifx.tasks.base import Model, Sums, Task, Totals
from aifx.tasks.registry import BUNDLED, create_task, load_task, task_class
from aifx.tasks.trained import Trained, Writer, open_trained, open_writer

__all__ = [
    "BUNDLED",
    "Model",
    "Sums",
    "Task",
    "Totals",
    "Trained",
    "Writer",
    "create_task",
    "load_task",
    "open_trained",
    "open_writer",
    "task_class",
]
