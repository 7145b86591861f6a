"""The node's product, firmware, operating system and mounts, by which nodes of a fleet are compared."""

from __future__ import annotations

import re
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes.disk import mounts
from aifx.health.probing import probe, text_of

DMI = "/sys/class/dmi/id"
CARDS = "/sys/class/infiniband"
OF_A_USER = re.compile(r"/run/user/|/snap/|/media/|/var/lib/(docker|containerd|kubelet|snapd)/|/proc|/(sys|dev)(/|$)")
KEPT = re.compile(
    r"ext[234]|xfs|btrfs|zfs|f2fs|vfat|nfs4?|cifs|lustre|gpfs|beegfs\w*|wekafs|ceph|fuse\.(?!portal|gvfs)\S+"
)
"""File systems with data; the others belong to the kernel."""


@probe("system", for_peers=True)
def collect(host: Host) -> dict[str, Any]:
    microcode = re.search(r"^microcode\s*:\s*(\S+)", text_of(host, "/proc/cpuinfo"), re.MULTILINE)
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', text_of(host, "/etc/os-release"), re.MULTILINE)
    return {
        "vendor": host.read(f"{DMI}/sys_vendor"),
        "product": host.read(f"{DMI}/product_name"),
        "bios": host.read(f"{DMI}/bios_version"),
        "microcode": microcode[1] if microcode else Absent("/proc/cpuinfo has no microcode version"),
        "os": name[1] if name else Absent("/etc/os-release has no name"),
        "card_firmware": _card_firmware(host),
        "mounts": _mounts(host),
    }


def _card_firmware(host: Host) -> list[str] | Absent | Unknown:
    """Return "model version" of InfiniBand and RoCE cards, each once."""
    cards = host.names(CARDS)
    if not isinstance(cards, list):
        return cards
    pairs = [(text_of(host, f"{CARDS}/{card}/board_id"), text_of(host, f"{CARDS}/{card}/fw_ver")) for card in cards]
    found = {f"{board} {version}" for board, version in pairs if board and version}
    return sorted(found) or Absent("the cards report no firmware version")


def _mounts(host: Host) -> list[str] | Absent | Unknown:
    """Return mounts such as "/scratch lustre", each once."""
    mounted = mounts(host)
    if not isinstance(mounted, list):
        return mounted
    points = [(point, kind) for _, point, kind, *_ in mounted if KEPT.fullmatch(kind) and not OF_A_USER.match(point)]
    return sorted({f"{point} {kind}" for point, kind in points})
