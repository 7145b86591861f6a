"""Projects from templates."""
