"""What projects cost and what came of it, from what is on disk: time, money, energy, promotions, alarms."""
