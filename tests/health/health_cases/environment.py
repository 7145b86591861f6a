from health_trees import Case

from health_cases.jax import GPUS, both, edited, on_cpu


def variables(**values):
    return edited("environ", lambda environ: environ.update(values))


CASES = [
    Case("environment.jax.platform", GPUS, both(variables(JAX_PLATFORMS="cpu"), edited("jax", on_cpu))),
    Case("environment.jax.debugging", "server", variables(JAX_DISABLE_JIT="1")),
    Case("environment.jax.precision", GPUS, variables(JAX_DEFAULT_MATMUL_PRECISION="highest")),
    Case("environment.jax.cache_off", "server", variables(JAX_ENABLE_COMPILATION_CACHE="false")),
    Case("environment.xla.debugging", "server", variables(XLA_FLAGS="--xla_cpu_max_isa=AVX2 --xla_dump_to=/tmp/x")),
    Case("environment.xla.inexact", "server", variables(XLA_FLAGS="--xla_cpu_enable_fast_math=true")),
    Case("environment.xla.allocator", GPUS, variables(XLA_PYTHON_CLIENT_ALLOCATOR="platform")),
    Case("environment.nccl.off", GPUS, variables(NCCL_P2P_DISABLE="1")),
    Case("environment.nccl.off", GPUS, variables(NCCL_SOCKET_IFNAME="lo")),
    Case("environment.nccl.verbose", GPUS, variables(NCCL_DEBUG="TRACE")),
    Case("environment.cuda.profiler", GPUS, variables(CUDA_INJECTION64_PATH="/opt/nsight/libinjection.so")),
    Case("environment.cuda.blocking", GPUS, variables(CUDA_LAUNCH_BLOCKING="1")),
    Case("environment.cuda.hidden", GPUS, both(variables(CUDA_VISIBLE_DEVICES="-1"), edited("jax", on_cpu))),
    Case(
        "environment.cuda.partial",
        GPUS,
        both(variables(CUDA_VISIBLE_DEVICES="0,1"), edited("jax", lambda s: s.update(devices=s["devices"][:2]))),
    ),
    Case("environment.library.preloaded", "server", variables(LD_PRELOAD="/opt/trace/libtrace.so")),
    Case(
        "environment.library.shadowed",
        GPUS,
        both(
            variables(LD_LIBRARY_PATH="/usr/local/cuda-12.4/lib64:/opt/lib"),
            lambda tree: tree.update({"usr/local/cuda-12.4/lib64/libcudnn.so.9": ""}),
        ),
    ),
]
