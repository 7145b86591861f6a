"""The inference server: an engine that answers many requests at once, and the HTTP server in front of it."""
