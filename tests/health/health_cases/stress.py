import json

from health_machines.stressed import H100, events, product, stress_file
from health_trees import Case

GPUS = "4 GPUs in a project under stress"


def captured(edit, ended="finished", why=""):
    """The events of a stress test, changed before they become facts."""

    def change(tree):
        script = events()
        script = edit(script) or script
        tree.update(stress_file(script, ended, why))

    return change


def value(script, key, device="all"):
    return next(e["value"] for e in script if e["event"] == "result" and e["key"] == key and e["device"] == device)


def odd(script):
    value(script, "consistency hot")["hashes"]["gpu:2"]["matmul bfloat16"] = ["9d1c33aa01b2c3d5"] * 3


def unsteady(script):
    value(script, "consistency cold")["hashes"]["gpu:1"]["exp"][2] = "0000000000000000"


def inexact(script):
    for runs in value(script, "consistency cold")["hashes"].values():
        runs["matmul int8"] = ["1111111111111111"] * 3


def without(script, device):
    """Nothing more of this device after the first consistency check."""
    kept = [e for e in script if e.get("device") != device]
    value(kept, "sustained").pop(device)
    return kept


def hung(script):
    event = {"event": "hung", "step": 7, "key": "memory", "device": "gpu:3", "what": "memory"}
    return [*without(script, "gpu:3"), event]


def failed(script):
    why = "XlaRuntimeError: INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE"
    event = {"event": "failed", "step": 7, "key": "memory", "device": "gpu:3", "what": "memory", "why": why}
    return [*without(script, "gpu:3"), event]


def crowded(script):
    why = "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1073741824 bytes"
    event = {"event": "crowded", "step": 7, "key": "memory", "device": "gpu:3", "what": "memory", "why": why}
    return [*without(script, "gpu:3"), event]


def wrong(script):
    value(script, "memory", "gpu:0").update(wrong_elements=3, is_right=False)


def shares(share, devices=range(4)):
    def edit(script):
        for i in devices:
            new = product("bfloat16", share, H100.peak_tflops["bfloat16"])
            value(script, "matmul", f"gpu:{i}").update(new)

    return edit


def throttled(tree):
    document = json.loads(tree["aifx-captured/stress.json"])
    document["sensors"][2].update(throttled=0.4, reasons=["hardware thermal"], temperature_max_c=92.0)
    tree["aifx-captured/stress.json"] = json.dumps(document)


def on_cpu(script):
    device = {"device": "cpu:0", "kind": "cpu", "platform": "cpu"}
    slow = {**product("float32", 0.01, 0.3), "peak": "estimate"}
    return [
        {"event": "devices", "devices": [device]},
        {"event": "result", "step": 0, "key": "matmul", "device": "cpu:0", "what": "products", "value": slow},
    ]


def together(script):
    script.append(
        {"event": "failed", "step": 9, "key": "collectives", "device": "all", "what": "collectives", "why": "NCCL 5"}
    )


CASES = [
    Case("stress.consistency.differs", GPUS, captured(odd)),
    Case("stress.consistency.unsteady", GPUS, captured(unsteady)),
    Case("stress.consistency.inexact", GPUS, captured(inexact)),
    Case("stress.device.hung", GPUS, captured(hung)),
    Case("stress.device.failed", GPUS, captured(failed)),
    Case("stress.device.crowded", GPUS, captured(crowded)),
    Case("stress.device.wrong", GPUS, captured(wrong)),
    Case(
        "stress.collective.wrong",
        GPUS,
        captured(lambda s: value(s, "collectives")[0].update(wrong=["gpu:1"], num_wrong=1)),
    ),
    Case("stress.run.failed", GPUS, captured(together)),
    Case("stress.run.broken", GPUS, captured(lambda s: s[:9], "died", "sustained load: signal 9 (Killed)")),
    Case("stress.matmul.very_slow", GPUS, captured(shares(0.22))),
    Case("stress.matmul.slow", GPUS, captured(shares(0.5))),
    Case("stress.matmul.behind", GPUS, captured(shares(0.68, [2]))),
    Case("stress.matmul.below_own", GPUS, captured(lambda s: value(s, "matmul", "gpu:1").update(of_own=0.8))),
    Case("stress.memory.below_own", GPUS, captured(lambda s: value(s, "memory", "gpu:1").update(of_own=0.8))),
    Case("stress.matmul.cpu", GPUS, captured(on_cpu)),
    Case("stress.memory.slow", GPUS, captured(lambda s: value(s, "memory", "gpu:1").update(gb_s=2100.0, of_peak=0.63))),
    Case("stress.copy.slow", GPUS, captured(lambda s: value(s, "copies", "gpu:1")[0].update(gb_s=12.0, of_usual=0.25))),
    Case(
        "stress.collective.slow",
        GPUS,
        captured(lambda s: value(s, "collectives")[0].update(bus_gb_s=90.0, of_usual=0.2)),
    ),
    Case(
        "stress.load.falls",
        GPUS,
        captured(lambda s: value(s, "sustained")["gpu:0"].update(tflops_last=520.0, kept=0.72)),
    ),
    Case("stress.load.throttled", GPUS, throttled),
    Case("stress.run.cut", GPUS, captured(lambda s: s[:9], "interrupted", "Ctrl-C")),
]
