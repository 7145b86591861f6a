from health_trees import Case

CPU = "sys/devices/system/cpu"

CASES = [
    Case("cpu.cores.offline", "server", {f"{CPU}/online": "0-3,5-15\n"}),
    Case("cpu.cores.offline", "server", {f"{CPU}/online": "0-6\n", f"{CPU}/smt/control": "forceoff\n"}),
    Case("cpu.governor.slow", "server", {f"{CPU}/cpufreq/policy3/scaling_governor": "powersave\n"}),
    Case(
        "cpu.throttle.package",
        "server",
        {f"{CPU}/cpu0/thermal_throttle/package_throttle_count": "500\n"},
        before={f"{CPU}/cpu0/thermal_throttle/package_throttle_count": "3\n"},
    ),
]
