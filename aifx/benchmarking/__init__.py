"""Measure, compare, gate.

A suite measures one thing (`suites`). Each launch of it is a process of its own, which reports results as it
has them (`runner`). A result keeps its raw samples, launch by launch (`results`); a median and an interval are formed
of them once (`estimate`), and nothing is dropped. Reports are compared only where their fingerprints say that they can
be (`fingerprint`).
"""
