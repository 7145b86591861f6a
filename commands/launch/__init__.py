"""`aifx launch`: start a command as several processes."""
