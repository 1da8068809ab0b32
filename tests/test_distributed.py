"""Two processes on this machine: the same numbers as one, and one end for both."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_train import rows_of

from bulk_sgd import distributed, record

ROOT = pathlib.Path(__file__).resolve().parents[1]
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
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "PYTHONPATH": str(ROOT),
        **more,
    }


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(command, *, count=2, num_devices=2):
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


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_two_processes_of_two_devices_equal_one_of_four_and_one(tmp_path, fsdp):
    statuses, said = wait(
        start(main(tmp_path / "2x2", f"--config.sharding.fsdp={fsdp}"))
    )
    assert statuses == [0, 0], said
    # Process 0 alone writes, and says so.
    assert ["complete" in out for out, _ in said] == [True, False]
    for num_devices, sharding in ((4, fsdp), (1, 1)):
        subprocess.run(
            [
                *(sys.executable, "-m", "bulk_sgd.main", *CONFIG),
                f"--workdir={tmp_path / str(num_devices)}",
                f"--config.sharding.fsdp={sharding}",
            ],
            env=environment(num_devices),
            cwd=ROOT,
            check=True,
        )
    ours = rows_of(tmp_path / "2x2")
    for name in ("4", "1"):
        theirs = rows_of(tmp_path / name)
        assert [(row["arm"], row["step"]) for row in theirs] == [
            (row["arm"], row["step"]) for row in ours
        ]
        for mine, other in zip(ours, theirs):
            # Sums over devices round in another order, which solves to 1e-5 amplify
            # by the gap to λ_{k+1}.
            for field in ("train_loss", "test_loss", "alignment_gradient"):
                if other[field] is not None:
                    assert mine[field] == pytest.approx(other[field], rel=1e-4)
            if other["eigenvalues"]:
                np.testing.assert_allclose(
                    mine["eigenvalues"], other["eigenvalues"], rtol=1e-3
                )
    assert record.read(tmp_path / "2x2")["device"].startswith("4 x ")


FAILING = """
import sys
from bulk_sgd import run
write = run.Run.write
def fail(self, row):
    if row["step"] == 40:
        raise RuntimeError("broken on purpose")
    write(self, row)
if {index} == {failing}:
    run.Run.write = fail
sys.argv[0] = "bulk_sgd.main"
from bulk_sgd import main
main.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_exception_in_one_process_ends_the_job(tmp_path, failing):
    script = lambda index: FAILING.format(index=index, failing=failing)
    flags = main(tmp_path)(0)[2:]
    processes = start(lambda index: ["-c", script(index), *flags])
    began = time.monotonic()
    assert processes[failing].wait(timeout=300) == 1
    failed = time.monotonic()
    statuses, said = wait(processes, timeout=60)
    print(f"started {failed - began:.1f} s, others {time.monotonic() - failed:.1f} s")
    assert time.monotonic() - failed < 15
    assert all(status != 0 for status in statuses)
    assert "broken on purpose" in said[failing][1]


@pytest.mark.slow
def test_wrong_input_on_one_process_ends_the_job(tmp_path):
    def command(index):
        return main(tmp_path, f"--config.batch_size={40 if index else 41}")(index)

    statuses, said = wait(start(command), timeout=60)
    assert statuses == [2, 2]
    assert "config on process 1 differs from that on process 0" in said[0][1]
    assert "config.batch_size on process 1 differs from process 0" in said[1][1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_seeds_must_agree(tmp_path):
    statuses, said = wait(
        start(lambda index: main(tmp_path, f"--config.seed={index}")(index)), timeout=60
    )
    assert statuses == [2, 2]
    assert "config.seed on process 1 differs" in said[1][1]


def test_on_without_a_job_is_refused_and_auto_runs_alone(tmp_path):
    def run(mode, **more):
        return subprocess.run(
            [
                *(sys.executable, "-m", "bulk_sgd.main", *CONFIG),
                *(f"--workdir={tmp_path}", f"--distributed={mode}"),
                *("--config.num_steps=1", "--config.switch.step=1"),
            ],
            env=environment(1, **more),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    refused = run("on")
    assert refused.returncode == 2
    assert "--distributed is on, but no job was detected" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    partial = run("on", JAX_NUM_PROCESSES="2")
    assert partial.returncode == 2
    assert "'JAX_PROCESS_ID': None" in partial.stderr
    assert run("auto").returncode == 0
    assert record.read(tmp_path)["status"] == "complete"


def test_a_lone_process_is_the_first():
    assert distributed.is_first()
    assert distributed.on_first(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="no such"):
        distributed.initialize("no such mode")


SWEEP = """
from configs.mnist_mlp import get_config as base
from bulk_sgd import grid

def get_config():
    return base("quick")

def get_sweep():
    return grid.values("optimizer.learning_rate", (0.02, 0.05))
"""


@pytest.mark.slow
def test_sweep_of_two_processes_shares_prefixes_and_goes_on(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)

    def command(index):
        # Only process 0 needs its workdir, here at another place for each.
        return (
            *("-m", "bulk_sgd.sweep", "--distributed=on"),
            *(f"--workdir={tmp_path}/sweep{index}", f"--config={tmp_path}/sweep.py"),
            *(*CONFIG[1:], "--config.sharding.fsdp=2"),
        )

    statuses, said = wait(start(command))
    assert statuses == [0, 0], said
    assert "2 cells, 2 complete" in said[0][0]
    assert len(list((tmp_path / "sweep0" / "prefixes").iterdir())) == 2
    # A cell that is lost starts again, from the prefix that was kept.
    shutil.rmtree(tmp_path / "sweep0" / "cells" / "001")
    statuses, said = wait(start(command))
    assert statuses == [0, 0], said
    assert "1 of 2 cells had ended before" in said[0][1]
    assert "2 cells, 2 complete" in said[0][0]
    assert "cells" not in said[1][0] + said[1][1]
    assert not (tmp_path / "sweep1").exists()


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_the_same_step(tmp_path):
    """And the job goes on, here as one process of one device."""
    more = ("--config.num_steps=4000", "--config.checkpoint.every=20")
    processes = start(main(tmp_path / "run", *more))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while '"sgd"' not in (metrics.read_text() if metrics.exists() else ""):
        assert time.monotonic() < deadline
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said = wait(processes)
    assert statuses == [128 + signal.SIGTERM] * 2, said
    assert record.read(tmp_path / "run")["status"] == "interrupted"
    (newest,) = {rows_of(tmp_path / "run")[-1]["step"]}
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "bulk_sgd.main", *CONFIG, *more),
            f"--workdir={tmp_path / 'run'}",
        ],
        env=environment(1),
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert f"going on from sgd, step {newest}" in run.stderr.readline()
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=240) == 128 + signal.SIGTERM
    steps = [(row["arm"], row["step"]) for row in rows_of(tmp_path / "run")]
    assert len(set(steps)) == len(steps)
