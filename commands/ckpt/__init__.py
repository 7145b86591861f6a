"""`aifx ckpt`."""
