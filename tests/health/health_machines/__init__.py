"""Healthy machines: a module each or more, with `MACHINES`, functions that make their trees, by name."""
