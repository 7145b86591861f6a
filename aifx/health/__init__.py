"""The health of a node and of a fleet: probes give facts, rules judge them, a report tells what to do next.

collect (`probes`, through a `Host`) -> `Snapshot` (JSON) -> `rules` (data) -> `evaluate_rules` (pure) -> `Report`.
"""
