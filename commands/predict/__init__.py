"""`aifx predict`."""
