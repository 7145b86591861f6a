"""`aifx sweep`: train with different settings, and rank them."""
