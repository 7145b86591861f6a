"""The health of a node and of a fleet: probes collect facts, rules evaluate them, a report says what to do next.

collect (`probes`, through a `Host`) -> `Snapshot` (JSON) -> `rules` (data) -> `evaluate_rules` (pure) -> `Report`.
"""
