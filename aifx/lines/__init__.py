"""Stations that run by themselves: what a line is, what it remembers, and what a tick of it does."""
