"""`aifx registry`."""
