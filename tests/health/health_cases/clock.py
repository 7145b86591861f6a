from health_machines.clock_files import CHRONY, chrony, ptp, timesyncd
from health_trees import Case

SOURCE = "sys/devices/system/clocksource/clocksource0/current_clocksource"

CASES = [
    Case("clock.synchronized.no", "server", chrony(0, 1.0, "Not synchronised")),
    Case("clock.synchronized.no", "server", {CHRONY: None, **timesyncd(synchronized="no")}),
    Case("clock.offset.large", "server", chrony(-0.731)),
    Case("clock.offset.large", "server", {CHRONY: None, **timesyncd("-1min 2.003s")}),
    Case("clock.offset.off", "server", chrony(0.062)),
    Case("clock.offset.unsure", "server", chrony(0.001, dispersion_s=2.4)),
    Case("clock.source.slow", "server", {SOURCE: "hpet\n"}),
    Case("clock.ptp.no_grandmaster", "server", ptp(910_000, "false")),
    Case("clock.ptp.offset", "server", ptp(-910_000)),
]
