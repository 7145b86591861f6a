"""The base of every other package: errors, files, project folders, progress, text for people and programs."""
