"""Jobs of several processes: their start, their supervision and their state."""
