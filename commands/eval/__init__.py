"""`aifx eval`."""
