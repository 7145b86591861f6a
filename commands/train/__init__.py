"""`aifx train`."""
