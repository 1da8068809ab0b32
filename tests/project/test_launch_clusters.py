"""Launchers on GKE, Slurm and SkyPilot, against stubs."""

import os
import signal
import subprocess
import time

import pytest
import yaml
from launch_stubs import COMMAND, JOB, LAUNCH, cloud_fixture  # noqa: F401


def test_jobset_is_the_manifest_of_one_slice(cloud):
    word = "--x=$(HOME) it's\n$$"
    result = cloud.run(
        "gke.sh", "manifest", *COMMAND, word, IMAGE="i:1", TOPOLOGY="2x4"
    )
    assert result.returncode == 0
    assert "${" not in result.stdout
    manifest = yaml.safe_load(result.stdout)
    (exclusive,) = manifest["metadata"]["annotations"]
    assert exclusive == "alpha.jobset.sigs.k8s.io/exclusive-topology"
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4
    (policy,) = spec["podFailurePolicy"]["rules"]
    assert policy["onExitCodes"]["values"] == [2]  # `cli.refuse`
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4"
    (container,) = pod["containers"]
    assert container["image"] == "i:1"
    (command,) = container["args"]
    assert "$(" not in command.replace("$$", "")  # Kubernetes would replace it
    command = command.replace("$$", "$")
    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s|' {command}"], capture_output=True, text=True
    )
    assert echoed.stdout.split("|")[3:7] == [
        "--config.arms=('sgd', 'dom_sgd')",
        word,
        "--workdir=/runs/bulk-sgd",
        "--distributed=on",
    ]


def test_gke_calls_xpk_docker_and_kubectl(cloud):
    environment = {"IMAGE": "i:1", "CLUSTER": "c", "STORAGE": "s"}
    for action in (["image"], ["xpk", *COMMAND], ["apply", *COMMAND], ["logs"]):
        assert cloud.run("gke.sh", *action, **environment).returncode == 0
    told = [call for call in cloud.calls if call[0] != "git"]
    assert [call[:2] for call in told] == [
        ["docker", "build"],
        ["docker", "push"],
        ["xpk", "workload"],
        ["kubectl", "apply"],
        ["kubectl", "logs"],
    ]
    assert told[0][-1] in next(call for call in cloud.calls if "clone" in call)
    assert {"--tpu-type=v5litepod-16", "--storage=s", "--docker-name=bulk-sgd"} <= set(
        told[2]
    )
    assert told[2][-1].startswith("--command=mountpoint /runs && exec python")
    assert "--container=bulk-sgd" in told[4]


def test_slurm_script_runs_one_process_per_gpu(cloud):
    result = cloud.run("slurm.sh", "--dry-run", *JOB, NODES="2", GPUS="4", QOS="q")
    assert result.returncode == 0
    assert cloud.calls == []
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --requeue",
        "#SBATCH --qos=q",
    ):
        assert line in result.stdout.splitlines()
    assert "--array" not in result.stdout
    assert cloud.run("slurm.sh", *JOB).returncode == 0
    assert cloud.calls[-1] == ["sbatch"]


def test_slurm_array_runs_a_cell_each(cloud):
    result = cloud.run("slurm.sh", "--dry-run", *JOB, CELLS="3", PARALLEL="2")
    assert "#SBATCH --array=0-2%2" in result.stdout
    cloud.stub("srun", "exit 5")
    ran = subprocess.run(
        ["bash", "-c", result.stdout],
        env=cloud.environment | {"SLURM_ARRAY_TASK_ID": "2"},
    )
    assert ran.returncode == 5
    assert cloud.calls[-1][-4:] == [
        "--config.arms=('sgd', 'dom_sgd')",
        "--workdir=w",
        "--distributed=on",
        "--cell=2",
    ]


@pytest.mark.parametrize(
    ("number", "cells", "status", "calls"),
    [
        (signal.SIGUSR1, "", 0, ["scancel --signal=TERM 7", "scontrol requeue 7"]),
        (signal.SIGUSR1, "3", 0, ["scancel --signal=TERM 5_2", "scontrol requeue 5_2"]),
        (signal.SIGTERM, "", 143, []),
    ],
)
def test_slurm_job_outlives_the_save(cloud, number, cells, status, calls):
    """Near its time limit it signals the tasks; elsewhere Slurm has."""
    script = cloud.run("slurm.sh", "--dry-run", *JOB, CELLS=cells).stdout
    ready, asked, saved = (cloud.folder / name for name in ("ready", "asked", "saved"))
    tasks = f"until [ -f {asked} ]; do sleep 0.02; done; sleep 0.2; touch {saved}"
    # srun answers SIGTERM by killing its tasks.
    cloud.stub("srun", f"trap 'exit 137' TERM; touch {ready}; {tasks}; exit 143")
    cloud.stub("scancel", f"touch {asked}")
    cloud.stub("scontrol")
    ids = {"JOB_ID": "7", "ARRAY_JOB_ID": "5", "ARRAY_TASK_ID": "2"}
    job = subprocess.Popen(
        ["bash", "-c", script],
        env=cloud.environment | {f"SLURM_{name}": value for name, value in ids.items()},
    )
    while not ready.exists():
        time.sleep(0.02)
    os.kill(job.pid, number)
    if number == signal.SIGTERM:
        asked.touch()
    assert job.wait(timeout=20) == status
    assert saved.exists()
    assert [" ".join(call).strip() for call in cloud.calls[1:]] == calls


@pytest.mark.parametrize("name", ["sky_tpu", "sky_gpu"])
def test_sky_tasks_are_yaml_that_runs_the_command(cloud, tmp_path, name):
    task = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    assert task["resources"]["use_spot"]
    assert task["envs"]["BUCKET"] is None  # sky refuses to start without it
    assert task["file_mounts"]["~/sky_workdir/.git"] == ".git"
    cloud.stub("train", 'echo "$JAX_PROCESS_ID" "$JAX_COORDINATOR_ADDRESS"')
    ran = subprocess.run(
        ["bash", "-c", task["run"]],
        env=cloud.environment
        | {
            "COMMAND": """train --config=x --config.arms="('sgd', 'bulk_sgd')\"""",
            "NAME": "n",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
        },
        capture_output=True,
        text=True,
    )
    assert cloud.calls == [
        [
            "train",
            "--config=x",
            "--config.arms=('sgd', 'bulk_sgd')",
            "--workdir=/runs/n",
            "--distributed=on",
        ]
    ]
    assert ran.stdout.strip() == ("1 10.0.0.1:8476" if name == "sky_gpu" else "")
