"""Rows of databases: `aifx data add NAME URL --query SQL`, and back with `aifx data push`."""
