"""Output of the daemons that set the clock."""

from __future__ import annotations

CHRONY = "aifx-captured/chronyc_-c_tracking.txt"
PTP = "aifx-captured/pmc_-u_-b_0_GETTIME_STATUS_NP.txt"


def chrony(offset_s: float = 0.000004821, dispersion_s: float = 0.000913, leap: str = "Normal") -> dict[str, str]:
    reference = "C0A80105,192.168.1.5,3,1795599964.513221040"
    text = (
        f"{reference},{offset_s:.9f},0.000012,0.000023,-8.412,0.002,0.049,0.000412231,{dispersion_s:.9f},64.4,{leap}\n"
    )
    return {CHRONY: text}


def timesyncd(offset: str = "+1.204ms", synchronized: str = "yes") -> dict[str, str]:
    return {
        "aifx-captured/timedatectl_show.txt": "Timezone=Etc/UTC\nLocalRTC=no\nCanNTP=yes\nNTP=yes\n"
        f"NTPSynchronized={synchronized}\nTimeUSec=Wed 2026-11-25 10:00:00 UTC\n",
        "aifx-captured/timedatectl_timesync-status.txt": "       Server: 185.125.190.56 (ntp.ubuntu.com)\n"
        "Poll interval: 34min 8s (min: 32s; max 34min 8s)\n      Version: 4\n      Stratum: 2\n"
        f"       Offset: {offset}\n",
    }


def ptp(offset_ns: int = -37, present: str = "true") -> dict[str, str]:
    text = (
        "sending: GET TIME_STATUS_NP\n\t9c63c0.fffe.0f1a2b-0 seq 0 RESPONSE MANAGEMENT TIME_STATUS_NP\n"
        f"\t\tmaster_offset              {offset_ns}\n\t\tingress_time               1795599964513221040\n"
        f"\t\tgmPresent                  {present}\n\t\tgmIdentity                 ec4670.fffe.0a1b2c\n"
    )
    return {PTP: text}


def clock_files() -> dict[str, str]:
    return chrony() | {"sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n"}
