"""Vectors of texts, indexes of them that belong to versions of data sets, and searches."""
