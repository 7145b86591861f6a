"""`aifx config`."""
