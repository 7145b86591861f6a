"""Faults of machines: one module per family, with `CASES`, one or more for each rule."""
