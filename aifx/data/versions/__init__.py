"""Versions of data sets: their manifests, shards and catalogs."""
