"""Launchers on GKE, Slurm and SkyPilot, against stubs."""

import os
import signal
import subprocess
import time

import pytest
import yaml
from launch_stubs import COMMAND, LAUNCH, cloud_fixture  # noqa: F401


def test_jobset_is_the_manifest_of_one_slice(cloud):
    result = cloud.run("gke.sh", "manifest", *COMMAND, IMAGE="i:1", TOPOLOGY="2x4")
    assert result.returncode == 0
    assert "${" not in result.stdout
    manifest = yaml.safe_load(result.stdout)
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4"
    (container,) = pod["containers"]
    assert container["image"] == "i:1"
    (command,) = container["args"]
    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s|' {command}"], capture_output=True, text=True
    )
    assert echoed.stdout.split("|")[3:6] == [
        "--config.arms=('sgd', 'dom_sgd')",
        "--workdir=/runs/bulk-sgd",
        "--distributed=on",
    ]


def test_gke_calls_xpk_docker_and_kubectl(cloud):
    environment = {"IMAGE": "i:1", "CLUSTER": "c"}
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
    assert "--tpu-type=v5litepod-16" in told[2]


def test_slurm_script_runs_one_process_per_gpu(cloud):
    result = cloud.run("slurm.sh", "--dry-run", *COMMAND, NODES="2", GPUS="4", QOS="q")
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
    assert cloud.run("slurm.sh", *COMMAND).returncode == 0
    assert cloud.calls[-1] == ["sbatch"]


def test_slurm_array_runs_a_cell_each(cloud):
    result = cloud.run("slurm.sh", "--dry-run", *COMMAND, CELLS="3", PARALLEL="2")
    assert "#SBATCH --array=0-2%2" in result.stdout
    cloud.stub("srun", "exit 5")
    ran = subprocess.run(
        ["bash", "-c", result.stdout],
        env=cloud.environment | {"SLURM_ARRAY_TASK_ID": "2"},
    )
    assert ran.returncode == 5
    assert cloud.calls[-1][-3:] == [
        "--config.arms=('sgd', 'dom_sgd')",
        "--distributed=on",
        "--cell=2",
    ]


def test_slurm_job_is_queued_again_when_its_time_is_up(cloud):
    script = cloud.run("slurm.sh", "--dry-run", *COMMAND).stdout
    ready = cloud.folder / "ready"
    cloud.stub("srun", f"trap 'exit 143' TERM; touch {ready}; sleep 30 & wait $!")
    cloud.stub("scontrol")
    job = subprocess.Popen(
        ["bash", "-c", script], env=cloud.environment | {"SLURM_JOB_ID": "7"}
    )
    while not ready.exists():
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(timeout=20) == 0
    assert cloud.calls[-1] == ["scontrol", "requeue", "7"]


@pytest.mark.parametrize("name", ["sky_tpu", "sky_gpu"])
def test_sky_tasks_are_yaml_that_runs_the_command(cloud, tmp_path, name):
    task = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    assert task["resources"]["use_spot"]
    assert task["envs"]["BUCKET"] is None  # sky refuses to start without it
    cloud.stub("train", 'echo "$JAX_PROCESS_ID" "$JAX_COORDINATOR_ADDRESS" "$@"')
    ran = subprocess.run(
        ["bash", "-c", task["run"]],
        env=cloud.environment
        | {
            "COMMAND": "train --config=x",
            "NAME": "n",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
        },
        capture_output=True,
        text=True,
    )
    expected = "--config=x --workdir=/runs/n --distributed=on\n"
    if name == "sky_gpu":
        expected = "1 10.0.0.1:8476 " + expected
    assert ran.stdout.strip() == expected.strip()
