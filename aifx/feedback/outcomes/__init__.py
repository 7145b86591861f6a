"""Outcomes: what happened to rows that a model predicted, joined with its predictions."""
