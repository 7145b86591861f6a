from health_machines.network_files import MODULES, ROUTES, card
from health_trees import Case

NVIDIA = "nvidia 9732096 38 nvidia_uvm, Live 0x0000000000000000 (POE)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024\n"
GPUS = {
    f"sys/bus/pci/devices/0000:{bus}:00.0/{name}": f"{text}\n"
    for bus in ("1b", "43")
    for name, text in (("vendor", "0x1002"), ("class", "0x038000"))
}
BRIDGES = """\
15:01.0 PCI bridge: Intel Corporation Device 352a (rev 30) (prog-if 00 [Normal decode])
\tCapabilities: [220 v1] Access Control Services
\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
\t\tACSCtl:\tSrcValid- TransBlk- ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-

18:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
\tCapabilities: [220 v1] Access Control Services
\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
"""
ENO1 = "sys/class/net/eno1"
TWINS = {**card("eno3"), **card("eno4"), **card("eno5")}

CASES = [
    Case("network.interface.down", "server", {f"{ENO1}/operstate": "down\n", f"{ENO1}/carrier_changes": "3\n"}),
    Case("network.interface.flapping", "server", {f"{ENO1}/carrier_changes": "12\n"}, before={}),
    Case("network.interface.errors", "server", {f"{ENO1}/statistics/rx_errors": "64000\n"}, before={}),
    Case("network.interface.slow", "server", TWINS | {f"{ENO1}/speed": "10000\n"}),
    Case("network.interface.half_duplex", "server", {f"{ENO1}/duplex": "half\n"}),
    Case("network.interface.mtu", "server", {**TWINS, **card("eno3", mtu=9000)}),
    Case("network.route.none", "server", {"proc/net/route": ROUTES.splitlines()[0] + "\n"}),
    Case(
        "network.name.unresolved", "server", {"aifx-captured/own_name.json": '{"resolves": false, "took_ms": 1500.4}'}
    ),
    Case("network.name.slow", "server", {"aifx-captured/own_name.json": '{"resolves": true, "took_ms": 1211.0}'}),
    Case(
        "network.gpudirect.none",
        "server with InfiniBand",
        {"proc/modules": MODULES + NVIDIA, "proc/driver/nvidia/version": CLOSED},
    ),
    Case("network.acs.redirects", "server", {**GPUS, "aifx-captured/lspci_-vvv.txt": BRIDGES}),
]
