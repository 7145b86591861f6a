"""Models from and to the ecosystem of Hugging Face."""
