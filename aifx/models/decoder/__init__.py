"""The decoder-only transformer: GPT-2, Llama and models between them."""
