"""`aifx kpis`."""
