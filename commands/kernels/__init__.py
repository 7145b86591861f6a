"""`aifx kernels`."""
