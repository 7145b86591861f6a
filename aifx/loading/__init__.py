"""The model of a run, ready to use."""
