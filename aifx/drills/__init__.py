"""Injected faults, and whether a run recovers from them as promised."""
