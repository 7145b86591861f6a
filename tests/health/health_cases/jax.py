import json

from health_machines.jax_stack import CUDA_WHEELS
from health_trees import Case

GPUS = "8xH100 SXM"


def edited(name, edit):
    """A change of a captured document, in place."""

    def change(tree):
        path = f"aifx-captured/{name}.json"
        document = json.loads(tree[path])
        edit(document)
        tree[path] = json.dumps(document)

    return change


def both(*changes):
    def change(tree):
        for one in changes:
            one(tree)

    return change


def installed(**versions):
    """Other versions; None is not installed."""

    def edit(document):
        for name, version in versions.items():
            document["packages"].pop(name.replace("_", "-"), None)
            if version:
                document["packages"][name.replace("_", "-")] = version

    return edited("jax_packages", edit)


def on_cpu(document):
    device = {"device": "cpu:0", "kind": "cpu", "platform": "cpu", "computes": True, "is_right": True, "error": ""}
    document.update(platform="cpu", devices=[device])


NO_PLUGIN = installed(jax_cuda13_plugin=None, jax_cuda13_pjrt=None, **dict.fromkeys(CUDA_WHEELS))
ABORTED = {
    "$unknown": "python -P -m failed (signal 6): F1125 parse_flags_from_env.cc:234] Unknown flags in XLA_FLAGS: "
    "--xla_gpu_enable_async_all_reduce=1 --xla_foo"
}

CASES = [
    Case("jax.backend.failed", "server", edited("jax", lambda s: s.update(error="RuntimeError: no", devices=[]))),
    Case(
        "jax.backend.failed",
        GPUS,
        edited("jax", lambda s: s.update(error="RuntimeError: CUDA_ERROR_SYSTEM_NOT_READY", devices=[])),
    ),
    Case("jax.flags.refused", GPUS, {"aifx-captured/jax.json": json.dumps(ABORTED)}),
    Case(
        "jax.device.failed",
        GPUS,
        edited("jax", lambda s: s["devices"][3].update(computes=False, is_right=False, error="CUDNN_STATUS_NOT_READY")),
    ),
    Case("jax.device.wrong", GPUS, edited("jax", lambda s: s["devices"][5].update(is_right=False))),
    Case("jax.gpu.unused", GPUS, both(NO_PLUGIN, edited("jax", on_cpu))),
    Case("jax.gpu.missing", GPUS, edited("jax", lambda s: s["devices"].pop())),
    Case("jax.gpu.unused", "L4 VM", both(NO_PLUGIN, edited("jax", on_cpu))),
    Case("jax.tpu.unused", "TPU v5e VM", edited("jax", on_cpu)),
    Case("jax.tpu.missing", "TPU v5e VM", edited("jax", lambda s: s["devices"].pop())),
    Case("jax.driver.old", GPUS, edited("jax_packages", lambda s: s["nvml"].update(driver="550.54.15", cuda="12.4"))),
    Case("jax.requirement.unmet", "server", installed(jaxlib="0.10.2")),
    Case("jax.requirement.unmet", "TPU v5e VM", installed(libtpu="0.0.52")),
    Case("jax.requirement.unmet", GPUS, both(installed(jax_cuda13_plugin="0.11.2"), edited("jax", on_cpu))),
    Case("jax.requirement.cuda", GPUS, installed(nvidia_nccl_cu13="2.16.5")),
    Case(
        "jax.requirement.overlap",
        GPUS,
        edited("jax_packages", lambda s: s.update(overlaps=["nvidia-nccl-cu12 and nvidia-nccl-cu13"])),
    ),
    Case(
        "jax.aifx.unsupported",
        "server",
        both(
            installed(jax="0.13.0", jaxlib="0.13.0"),
            edited("jax_packages", lambda s: s["requires"].update(jax=["jaxlib<=0.13.0,>=0.12.0.1"])),
        ),
    ),
    Case("jax.python.unsupported", "server", edited("jax_packages", lambda s: s.update(python="3.14.0"))),
    Case(
        "jax.cache.unwritable",
        "server",
        edited("jax_cache", lambda s: s.update(is_writable=False, why="Read-only file system")),
    ),
]
