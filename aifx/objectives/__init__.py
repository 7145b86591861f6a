"""What is learned from a batch: losses, metrics and predictions."""
