"""The update rule: optimizers, schedules, clipping."""
