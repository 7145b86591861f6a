"""Files that describe a server: product, firmware, operating system."""

from __future__ import annotations


def system_files() -> dict[str, str]:
    return {
        "sys/class/dmi/id/sys_vendor": "Supermicro\n",
        "sys/class/dmi/id/product_name": "SYS-821GE-TNHR\n",
        "sys/class/dmi/id/bios_version": "2.1\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\n',
    }
