"""`aifx plan`."""
