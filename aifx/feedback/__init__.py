"""What comes back after a model answers: whether its rows are still those that it learnt from."""
