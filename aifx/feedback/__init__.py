"""What comes back after a model answers: predictions of rows that come, and whether they are like the training's."""
