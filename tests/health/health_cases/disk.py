import json

from health_machines.disk_files import MOUNTS, NFS, places, smart
from health_trees import Case

DRIVE = "sys/class/nvme/nvme0"
ACCOUNT = "aifx-captured/nvme_smart-log_devnvme0_-o_json.txt"


def nfs(**changes: object) -> dict[str, str]:
    mounts = [{"device": "/home", "type": "nfs4", "answers": True, "error": "none", "took_ms": 0.8} | changes]
    return {"proc/self/mountinfo": MOUNTS + NFS, "aifx-captured/network_mounts.json": json.dumps(mounts)}


CASES = [
    Case(
        "disk.read_only.remounted",
        "server",
        {
            "proc/self/mountinfo": MOUNTS.replace("ext4 /dev/nvme0n1p2 rw", "ext4 /dev/nvme0n1p2 ro"),
            "sys/fs/ext4/nvme0n1p2/errors_count": "3\n",
            "aifx-captured/disk_places.json": places(is_writable=False, unwritable=["/tmp"]),
        },
    ),
    Case(
        "disk.read_only.remounted",
        "server",
        {"proc/self/mountinfo": MOUNTS.replace("xfs /dev/md0 rw", "xfs /dev/md0 rw,shutdown"), "etc/fstab": None},
    ),
    Case("disk.errors.ext4", "server", {"sys/fs/ext4/nvme0n1p2/errors_count": "3\n"}),
    Case("disk.space.full", "server", {"aifx-captured/disk_places.json": places(used_percent=96.4, free_gib=12.1)}),
    Case("disk.space.low", "server", {"aifx-captured/disk_places.json": places(used_percent=88.0, free_gib=101.2)}),
    Case("disk.inodes.low", "server", {"aifx-captured/disk_places.json": places(inodes_used_percent=99.0)}),
    Case(
        "disk.place.unwritable",
        "server",
        {"aifx-captured/disk_places.json": places(is_writable=False, unwritable=["/tmp"])},
    ),
    Case("disk.fsync.slow", "server", {"aifx-captured/disk_fsync.json": "612.4"}),
    Case("disk.network_mount.dead", "server", nfs(answers=False, error="Stale file handle", took_ms=900.0)),
    Case("disk.network_mount.slow", "server", nfs(took_ms=900.0)),
    Case("disk.nvme.dead", "server", {f"{DRIVE}/state": "dead\n", ACCOUNT: smart(media_errors=4)}),
    Case("disk.nvme.warning", "server", {ACCOUNT: smart(critical_warning=1, avail_spare=2, percent_used=121)}),
    Case("disk.nvme.warning", "server", {ACCOUNT: smart(critical_warning={"value": 4})}),
    Case("disk.nvme.spare", "server", {ACCOUNT: smart(avail_spare=10)}),
    Case("disk.nvme.worn", "server", {ACCOUNT: smart(percent_used=104)}),
    Case("disk.nvme.media_errors", "server", {ACCOUNT: smart(media_errors=17)}),
    Case(
        "disk.nvme.media_errors",
        "server",
        {
            ACCOUNT: None,
            "aifx-captured/smartctl_--json_-A_-H_devnvme0.txt": json.dumps(
                {
                    "nvme_smart_health_information_log": {
                        "critical_warning": 0,
                        "percentage_used": 3,
                        "media_errors": 17,
                        "available_spare": 100,
                    }
                }
            ),
        },
    ),
    Case("disk.nvme.link_narrow", "server", {f"{DRIVE}/device/current_link_width": "2\n"}),
]
