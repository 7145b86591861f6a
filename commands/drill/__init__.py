"""`aifx drill`."""
