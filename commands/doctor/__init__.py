"""`aifx doctor`."""
