"""Jobs of two processes on this machine, and a small run for them."""

import os
import socket
import subprocess
import sys

from four_devices import devices
from paths import ROOT

CONFIG = (
    "--config=configs/mnist_mlp.py:quick",
    "--config.data.num_train=320",
    "--config.data.num_test=80",
    "--config.subspace.subset_size=160",
    "--config.model.hidden=(12,)",
    "--config.batch_size=40",
    "--config.num_steps=60",
    "--config.switch.step=20",
    "--config.eval_every=20",
    "--config.subspace.rank=4",
    "--config.subspace.refresh_every=5",
    "--config.subspace.tol=1e-5",
    "--config.subspace.max_matvecs=100",
    "--config.arms=('sgd', 'bulk_sgd')",
    "--config.progress=False",
    "--config.tensorboard=False",
)


def environment(num_devices, **more):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": devices(num_devices),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}",
        **more,
    }


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(command, *, count=2, num_devices=2, **more):
    """The processes of a job, `command(index)` each."""
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, *command(index)],
            env=environment(
                num_devices,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(index),
                **more,
            ),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]


def wait(processes, timeout=300):
    """Exit statuses and what each process said."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def main(workdir, *more):
    base = ("-m", "bulk_sgd.main", "--distributed=on", f"--workdir={workdir}")
    return lambda index: [*base, *CONFIG, *more]
