"""What every other package uses: errors, files, project folders, progress, text for people and programs."""
