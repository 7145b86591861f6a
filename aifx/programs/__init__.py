"""From a configuration, a task and a layout to compiled programs."""

from aifx.programs.build import Programs, build
from aifx.programs.program import Program
from aifx.programs.state import TrainState
from aifx.programs.train_step import STEP_METRICS

__all__ = ["STEP_METRICS", "Program", "Programs", "TrainState", "build"]
