"""`aifx runs`."""
