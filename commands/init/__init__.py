"""`aifx init`."""
