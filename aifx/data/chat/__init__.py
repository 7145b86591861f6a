"""Chat data: conversations of .jsonl and .parquet files, rendered by a model's chat template."""
