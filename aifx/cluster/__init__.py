"""Jobs of several processes: how they are started and supervised."""
