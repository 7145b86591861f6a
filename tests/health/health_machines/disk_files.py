"""Mounts, drives and what was measured of them."""

from __future__ import annotations

import json
from typing import Any

MOUNTS = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
31 28 9:0 / /scratch rw,relatime shared:30 - xfs /dev/md0 rw,attr2,inode64,noquota
33 28 7:0 / /snap/core22/1380 ro,nodev,relatime shared:33 - squashfs /dev/loop0 ro,errors=continue
35 28 259:2 /etc/hosts /srv/jail/etc/hosts ro,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
36 28 259:9 / /mnt/data\\040set ro,relatime shared:2 - ext4 /dev/nvme1n1 ro,errors=remount-ro
"""
NFS = "40 28 0:51 / /home rw,relatime shared:41 - nfs4 filer:/home rw,vers=4.2,hard,timeo=600,addr=10.1.0.9\n"
FSTAB = """\
# <file system> <mount point> <type> <options> <dump> <pass>
UUID=4d1c / ext4 errors=remount-ro 0 1
/dev/md0 /scratch xfs defaults,nofail 0 2
"""


def places(**changes: Any) -> str:
    root = {
        "size_gib": 937.1,
        "free_gib": 612.4,
        "used_percent": 31.2,
        "inodes_used_percent": 2.4,
        "is_writable": True,
        "unwritable": [],
    }
    scratch = root | {"size_gib": 14304.0, "free_gib": 9120.7, "used_percent": 36.2}
    scratch |= {"device": "run /scratch/run", "mount_point": "/scratch"}
    others = root | {"device": "cache /home/user/.cache/aifx, temp /tmp, root /", "mount_point": "/"}
    return json.dumps([scratch, others | changes])


def smart(**changes: Any) -> str:
    told = {"critical_warning": 0, "temperature": 311, "avail_spare": 100, "spare_thresh": 10, "percent_used": 3}
    return json.dumps(told | {"media_errors": 0, "num_err_log_entries": 12} | changes)


def disk_files() -> dict[str, str]:
    """The system on one NVMe drive, a data set mounted read-only on purpose."""
    drive = "sys/class/nvme/nvme0"
    return {
        "proc/self/mountinfo": MOUNTS,
        "etc/fstab": FSTAB,
        "sys/dev/block/259:2": "-> ../../devices/pci0000:64/0000:64:02.0/0000:65:00.0/nvme/nvme0/nvme0n1/nvme0n1p2",
        "sys/fs/ext4/nvme0n1p2/errors_count": "0\n",
        f"{drive}/model": "SAMSUNG MZ1L2960HCJR-00A07              \n",
        f"{drive}/state": "live\n",
        f"{drive}/address": "0000:65:00.0\n",
        f"{drive}/device/current_link_width": "4\n",
        f"{drive}/device/max_link_width": "4\n",
        "aifx-captured/nvme_smart-log_devnvme0_-o_json.txt": smart(),
        "aifx-captured/disk_places.json": places(),
        "aifx-captured/disk_fsync.json": "1.83",
    }
