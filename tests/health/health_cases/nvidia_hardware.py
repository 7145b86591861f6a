"""Memory, heat, power, clocks and links of NVIDIA GPUs."""

from health_trees import Case

from health_cases.nvidia import NVL, PCIE, RACK, SXM, VM, gpu, rate, together

BUSY = {"utilization__gpu_percent": 97, "utilization__memory_percent": 60}
EXPECTED_CLOCK = {"expected": {"gpu_clock_mhz": 1980}}

MEMORY = [
    Case("nvidia.rows.failed", SXM, gpu(3, rows__failed=True, rows__uncorrectable=9, ecc__uncorrected_volatile=2)),
    Case("nvidia.rows.pending", SXM, gpu(3, rows__pending=True, rows__uncorrectable=1, ecc__uncorrected_volatile=1)),
    Case("nvidia.rows.many", PCIE, gpu(0, rows__uncorrectable=512)),
    Case("nvidia.rows.exhausted", SXM, gpu(0, rows__spareless_banks=1)),
    Case("nvidia.repair.unrepairable", RACK, gpu(0, repair__unrepairable_memory=True)),
    Case("nvidia.repair.pending", RACK, gpu(0, repair__channel_pending=True)),
    Case("nvidia.repair.tpc_pending", RACK, gpu(0, repair__tpc_pending=True)),
    Case("nvidia.pages.pending", PCIE, gpu(0, pages__pending=True, pages__total=3)),
    Case("nvidia.pages.many", PCIE, gpu(0, pages__total=60, pages__corrected=10, pages__uncorrected=50)),
    Case("nvidia.ecc.uncorrected", VM, gpu(0, ecc__uncorrected_volatile=1, ecc__dram_uncorrected_volatile=1)),
    Case("nvidia.ecc.sram_threshold", SXM,
         gpu(6, ecc__sram_threshold_exceeded=True, ecc__sram_uncorrected_aggregate=12)),
    Case("nvidia.ecc.sram_uncorrected", SXM, gpu(6, ecc__sram_uncorrected_aggregate=5)),
    Case("nvidia.ecc.sram_corrected", SXM, gpu(6, ecc__sram_corrected_aggregate=10_001)),
    Case("nvidia.ecc.dram_corrected", SXM, gpu(6, ecc__dram_corrected_aggregate=20_000_001)),
    rate("nvidia.ecc.corrected_rate", SXM, 6, ecc__corrected_volatile=15_000),
    Case("nvidia.ecc.off", VM, gpu(0, ecc__is_enabled=False, ecc__is_pending=False)),
    Case("nvidia.ecc.mode_pending", PCIE, gpu(0, ecc__is_pending=False)),
]  # fmt: skip

HEAT = [
    Case("nvidia.temperature.slowdown", SXM, gpu(1, temperature__margin_c=-2, temperature__gpu_c=87)),
    Case("nvidia.temperature.near_slowdown", VM, gpu(0, temperature__margin_c=3)),
    Case("nvidia.temperature.hot", PCIE, gpu(1, temperature__gpu_c=90)),
    Case("nvidia.temperature.warm", PCIE, gpu(1, temperature__gpu_c=85)),
    Case("nvidia.temperature.memory_limit", PCIE, gpu(1, temperature__memory_c=95)),
    Case("nvidia.temperature.memory", SXM, gpu(1, temperature__memory_c=97)),
    rate("nvidia.throttle.hardware", SXM, 4, throttle__hardware_ms=480_000, throttle__power_brake_ms=480_000),
    rate("nvidia.throttle.hardware_thermal", SXM, 4, throttle__hardware_thermal_ms=9000, throttle__thermal_ms=9000),
    rate("nvidia.throttle.power_brake", SXM, 4, throttle__power_brake_ms=9000),
    rate("nvidia.throttle.software_thermal", PCIE, 1, throttle__software_thermal_ms=9000, throttle__thermal_ms=9000),
    rate("nvidia.throttle.thermal", PCIE, 1, throttle__thermal_ms=9000),
    rate("nvidia.throttle.reliability", PCIE, 1, throttle__reliability_ms=9000),
    rate("nvidia.throttle.board_limit", PCIE, 1, throttle__board_limit_ms=9000),
    Case("nvidia.power.capped", SXM, gpu(1, power__limit_w=500.0, power__enforced_w=500.0)),
    Case("nvidia.power.over", VM, gpu(0, power__draw_w=95.0)),
    Case(
        "nvidia.clocks.expected", SXM, gpu(1, clocks__application_mhz=1410), site={"expected": {"gpu_clock_mhz": 1980}}
    ),
    Case("nvidia.clocks.application", SXM, gpu(1, clocks__application_mhz=1410)),
    Case("nvidia.clocks.memory", SXM, gpu(1, **BUSY, clocks__memory_mhz=1593, clocks__sm_mhz=1755)),
    Case("nvidia.clocks.low", SXM, gpu(1, **BUSY, clocks__sm_mhz=345)),
]

LINKS = [
    Case("nvidia.pcie.width", SXM, gpu(1, pcie__width=8)),
    Case("nvidia.pcie.generation", PCIE, gpu(1, **BUSY, pcie__generation=1, clocks__sm_mhz=1410)),
    Case("nvidia.pcie.slot", PCIE, gpu(1, pcie__max_generation=3)),
    rate("nvidia.pcie.replays", SXM, 1, pcie__replays=400),
    Case("nvidia.fabric.state", SXM, gpu(1, fabric__state="in_progress")),
    Case("nvidia.fabric.status", SXM, gpu(1, fabric__status=3)),
    Case("nvidia.fabric.identity", RACK, gpu(1, fabric__cluster="00000000-0000-0000-0000-000000000000")),
    Case("nvidia.fabric.identity", RACK, gpu(1, fabric__clique=0)),
    Case("nvidia.fabric.summary", RACK, gpu(1, fabric__summary="limited_capacity")),
    Case("nvidia.fabric.bandwidth", RACK, gpu(1, fabric__degraded_bandwidth=True, fabric__summary="unhealthy")),
    Case("nvidia.fabric.route", RACK, gpu(1, fabric__route_unhealthy=True)),
    Case("nvidia.fabric.recovery", RACK, gpu(1, fabric__route_recovery=True)),
    Case("nvidia.fabric.access", RACK, gpu(1, fabric__access_timeout_recovery=True)),
    Case("nvidia.fabric.configuration", RACK, gpu(1, fabric__configuration="no_partition")),
    Case("nvidia.nvlink.inactive", SXM, gpu(1, links__17__state="inactive")),
    Case("nvidia.nvlink.inactive", RACK, gpu(1, links__0__state="inactive", fabric__degraded_bandwidth=True)),
    Case(
        "nvidia.nvlink.inactive",
        SXM,
        together(*(gpu(i, **{f"links__{n}__state": "inactive" for n in range(18)}) for i in range(8))),
    ),
    Case("nvidia.nvlink.inactive", NVL, together(*(gpu(i, links__0__state="inactive") for i in (2, 3)))),
    Case("nvidia.nvlink.expected", PCIE, {}, site={"expected": {"nvlinks": 12}}),
    Case("nvidia.nvlink.state", RACK, gpu(1, links__4__state="traffic_disabled")),
    Case("nvidia.nvlink.speed", SXM, gpu(1, links__4__speed_mb_s=13281)),
    rate("nvidia.nvlink.recoveries", SXM, 1, links__4__recoveries=1, links__4__replays=30),
    rate("nvidia.nvlink.replays", SXM, 1, links__4__replays=3),
    rate("nvidia.nvlink.crc", SXM, 1, links__4__crc_errors=900_000, links__4__crc_flit_errors=900_000),
    rate("nvidia.nvlink.crc_some", SXM, 1, links__4__crc_errors=20, links__4__crc_data_errors=20),
    Case("nvidia.nvlink.ber", RACK, gpu(1, links__4__effective_ber=3e-10)),
    rate("nvidia.nvlink.recovery_failed", RACK, 1, links__4__recoveries_failed=1, links__4__integrity_errors=40),
    rate("nvidia.nvlink.link_recoveries", RACK, 0, links__14__link_recoveries=3),
    Case("nvidia.nvlink.link_recoveries_many", RACK, gpu(0, links__14__link_recoveries=505)),
    rate("nvidia.nvlink.integrity", RACK, 1, links__4__integrity_errors=40),
]

CASES = [*MEMORY, *HEAT, *LINKS]
