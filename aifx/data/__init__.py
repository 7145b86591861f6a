"""Sources become deterministic batches, a function of (seed, step, rows)."""
