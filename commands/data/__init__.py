"""`aifx data`."""
