"""`aifx bench`."""
