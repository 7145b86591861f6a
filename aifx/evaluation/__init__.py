"""Metrics of a checkpoint on held-out data, and predictions for new rows."""
