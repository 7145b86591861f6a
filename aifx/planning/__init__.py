"""What a run needs before it starts: memory, time, energy and cost on hardware that need not be here."""
