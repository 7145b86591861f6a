"""A small residual convolutional network for images of a fixed size."""
