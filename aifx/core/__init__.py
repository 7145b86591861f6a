"""What every room stands on: errors, files, project folders, progress, text for people and programs."""
