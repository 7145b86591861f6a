"""Checkpoints: saved, verified, kept and named. docs/checkpoints.md describes the format."""
