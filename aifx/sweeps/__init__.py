"""Sweeps: trainings of a project with different settings, each a run of its own, compared and ranked."""
