"""`aifx generate`."""
