"""`aifx line`."""
