"""Readers of source files: each turns a file into batches of rows, and what it cannot read into bad rows."""
