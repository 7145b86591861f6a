"""`aifx notify`."""
