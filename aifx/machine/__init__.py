"""This machine: its accelerators, their memory, and what it was measured to reach."""
