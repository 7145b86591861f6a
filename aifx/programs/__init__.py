"""Compiled programs of a configuration, a task and a layout."""
