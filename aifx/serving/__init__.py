"""An inference server: one engine that writes for many at once, and what speaks HTTP before it."""
