"""Which process of a job this one is: variables as schedulers set them."""

from __future__ import annotations

import pytest

from aifx.core.errors import ConfigError
from aifx.parallel.processes import PORT, PORTS, Membership, detect, first_host, lone_warning, started_by

SLURM = {  # of `srun` in a job with two tasks on each of two nodes, Slurm 24.11
    "SLURM_JOB_ID": "4711",
    "SLURM_JOBID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "node[003-004]",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
BATCH = {  # of the script of an `sbatch --ntasks=4`
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-node003-2093@1",
    "PMIX_RANK": "1",
}
INDEXED_JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2", "HOSTNAME": "train-2"}
POD = "train-2.pods.default.svc.cluster.local"
JOBSET = {  # as xpk writes the template
    "JOBSET_NAME": "llama",
    "REPLICATED_JOB_NAME": "slice-job",
    "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "3",
    "PROCESSES_IN_JOB": "4",
    "JAX_PROCESS_COUNT": "8",
    "JAX_COORDINATOR_ADDRESS": "llama-slice-job-0-0.llama",
}
GKE_TPU = {
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "tpu-job-slice-0-0.tpu,tpu-job-slice-0-1.tpu,tpu-job-slice-0-2.tpu,tpu-job-slice-0-3.tpu",
}
MEGASCALE = {
    "MEGASCALE_COORDINATOR_ADDRESS": "tpu-job-slice-0-0.tpu:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
GCE = {
    "agent-worker-number": "2",
    "worker-network-endpoints": "unknown:unknown:10.164.0.2,unknown:unknown:10.164.0.3,unknown:unknown:10.164.0.4",
    "tpu-env": "ACCELERATOR_TYPE: 'v4-24'\nZONE: 'us-central2-b'\n",
}
OURS = {"AIFX_COORDINATOR": "10.0.0.7:1234", "AIFX_NUM_PROCESSES": "3", "AIFX_PROCESS_ID": "2"}


def place(found: Membership | None) -> tuple[str, int, int, str]:
    assert found is not None
    return found.source, found.process_id, found.num_processes, found.host


def test_no_job() -> None:
    assert detect({"PATH": "/bin", "HOSTNAME": "laptop"}, fqdn="laptop.home") is None


def test_slurm() -> None:
    found = detect(SLURM)
    assert place(found) == ("Slurm", 3, 4, "node003")
    assert found is not None
    assert found.port in PORTS
    assert found.port == detect({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port  # type: ignore[union-attr]
    assert found.port != detect({**SLURM, "SLURM_STEP_ID": "1"}).port  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, (2, 3)),  # both tasks see all four
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "4"}, None),  # --gpus-per-task=2
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "2"}, None),  # --gpu-bind, in a cgroup of its own
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({}, None),
    ],
)
def test_gpus_of_a_task(environ: dict[str, str], devices: tuple[int, ...] | None) -> None:
    assert detect({**SLURM, **environ}).local_devices == devices  # type: ignore[union-attr]


def test_gpus_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"3 GPUs .* 2 processes"):
        detect(SLURM, num_gpus=3)
    with pytest.raises(ConfigError, match=r"2 GPUs .* 4 processes"):
        detect(OPEN_MPI_4, num_gpus=2)


def test_gpus_that_a_wrapper_gave_each_process() -> None:
    for own in ("1", "2,3"):
        assert detect({**OPEN_MPI_4, "CUDA_VISIBLE_DEVICES": own}, num_gpus=8).local_devices is None  # type: ignore[union-attr]


def test_a_batch_script_is_no_task() -> None:
    assert detect(BATCH) is None
    assert "without srun" in (lone_warning(BATCH) or "")
    assert lone_warning(SLURM) is None
    alone = {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert detect(alone) is None


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_a_missing_variable_of_slurm(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not set"):
        detect({k: v for k, v in SLURM.items() if k != name})


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_GPUS_ON_NODE", "SLURM_NODEID"])
def test_a_variable_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = 'gpu:2'"):
        detect({**SLURM, name: "gpu:2"})
    with pytest.raises(ConfigError, match="SLURM_NTASKS = 'abc'"):
        lone_warning({"SLURM_NTASKS": "abc"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[007,001-003]", "node007"),  # Slurm ranks the tasks of a step in its own order
        ("r[02-03]n[1-2]", "r02n1"),
        ("z9,a1", "z9"),
        ("r[1-2]n[01-16]", "r1n01"),
        ("gpu-a[3-4]-ib", "gpu-a3-ib"),
    ],
)
def test_the_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_open_mpi() -> None:
    assert place(detect(OPEN_MPI_4, num_gpus=8)) == ("Open MPI", 5, 8, "10.96.0.1")
    assert detect(OPEN_MPI_4, num_gpus=8).local_devices == (2, 3)  # type: ignore[union-attr]
    assert place(detect(OPEN_MPI_5)) == ("Open MPI", 1, 2, "127.0.0.1")
    within_slurm = {**OPEN_MPI_5, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", **BATCH, "SLURM_STEP_NUM_TASKS": "2"}
    assert place(detect(within_slurm)) == ("Open MPI", 1, 2, "node003")


def test_open_mpi_on_several_hosts_needs_an_address() -> None:
    spread = {**OPEN_MPI_5, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(ConfigError, match="rank 0") as raised:
        detect(spread)
    assert "AIFX_COORDINATOR" in raised.value.hint
    assert place(detect({**spread, "AIFX_COORDINATOR": "n1:20000"})) == ("Open MPI", 1, 2, "n1")


def test_an_indexed_job() -> None:
    environ = {**INDEXED_JOB, "AIFX_NUM_PROCESSES": "4"}
    assert place(detect(environ, fqdn=POD)) == ("Kubernetes", 2, 4, "train-0.pods.default.svc.cluster.local")
    assert detect(INDEXED_JOB, fqdn=POD) is None
    assert "AIFX_NUM_PROCESSES" in (lone_warning(INDEXED_JOB) or "")
    with pytest.raises(ConfigError, match="first pod") as raised:
        detect(environ, fqdn="train-2")
    assert "headless Service" in raised.value.hint


def test_a_jobset() -> None:
    assert place(detect(JOBSET)) == ("JobSet", 7, 8, "llama-slice-job-0-0.llama")
    named = {k: v for k, v in JOBSET.items() if k != "JAX_COORDINATOR_ADDRESS"}
    assert place(detect(named)) == ("JobSet", 7, 8, "llama-slice-job-0-0.llama")
    with pytest.raises(ConfigError, match="PROCESSES_IN_JOB is not set"):
        detect({k: v for k, v in JOBSET.items() if k != "PROCESSES_IN_JOB"})


def test_tpus_of_gke() -> None:
    found = detect(GKE_TPU)
    assert place(found) == ("GKE", 1, 4, "tpu-job-slice-0-0.tpu")
    assert found is not None
    assert found.port == PORT
    assert place(detect({**GKE_TPU, **MEGASCALE})) == ("GKE", 5, 8, "tpu-job-slice-0-0.tpu")
    assert detect({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_tpus_of_gce() -> None:
    assert place(detect({}, metadata=GCE.get)) == ("GCE", 2, 3, "10.164.0.2")
    new = {**GCE, "worker-network-endpoints": "t-w0,t-w1,t-w2", "tpu-env": "MEGASCALE_NUM_SLICES: '2'\n"}
    assert place(detect({"MEGASCALE_SLICE_ID": "1"}, metadata=new.get)) == ("GCE", 5, 6, "t-w0")
    assert detect({"TPU_SKIP_MDS_QUERY": "1"}, metadata=GCE.get) is None


def test_our_own_variables_win() -> None:
    found = detect({**SLURM, **OURS})
    assert found == Membership("AIFX_PROCESS_ID", "10.0.0.7:1234", 3, 2)
    assert detect({**OURS, "AIFX_NUM_PROCESSES": "1", "AIFX_PROCESS_ID": "0"}) is None
    moved = detect({**SLURM, "AIFX_COORDINATOR": "[fe80::1]:99"})
    assert place(moved) == ("Slurm", 3, 4, "fe80::1")
    assert moved is not None
    assert moved.port == 99


@pytest.mark.parametrize("name", list(OURS))
def test_a_missing_variable_of_ours(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not") as raised:
        detect({k: v for k, v in OURS.items() if k != name})
    assert name in raised.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIFX_PROCESS_ID", "3"),
        ("AIFX_PROCESS_ID", "-1"),
        ("AIFX_PROCESS_ID", "two"),
        ("AIFX_NUM_PROCESSES", "0"),
        ("AIFX_COORDINATOR", "10.0.0.7"),
        ("AIFX_COORDINATOR", "10.0.0.7:http"),
    ],
)
def test_a_wrong_value(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        detect({**OURS, name: value})
    assert value in raised.value.what
    assert raised.value.hint


@pytest.mark.parametrize(
    ("environ", "command"),
    [
        ({}, "aifx"),
        ({"AIFX_LAUNCHER": "7", "AIFX_NUM_PROCESSES": "2"}, "aifx launch local -n 2"),
        (
            {"AIFX_LAUNCHER": "7", "AIFX_NUM_PROCESSES": "8", "AIFX_NODES": "4", "SLURM_JOB_ID": "1"},
            "aifx launch slurm -N 4",
        ),
    ],
)
def test_how_a_person_starts_it_again(environ: dict[str, str], command: str) -> None:
    assert " ".join(started_by(environ)) == command
