"""Training: the loop, its state on disk, divergence, signals. `aifx.training.run.train` is the way in."""
