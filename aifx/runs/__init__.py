"""Run directories: who holds one, what is written there, and reading it back, alive or dead. Imports no jax."""
