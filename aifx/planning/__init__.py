"""Plans of a run before it starts: memory, time, energy and cost on hardware that need not be here."""
