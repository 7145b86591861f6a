"""Predictions of a model for rows that come, each row once, with positions and requests."""
