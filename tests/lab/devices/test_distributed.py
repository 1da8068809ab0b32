"""Two processes on this machine: the same numbers as one, and one end for both."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from tiny_runs import rows_of
from two_processes import CONFIG, environment, main, start, wait

from bulk_sgd.lab.devices import distributed
from bulk_sgd.lab.files import record


@pytest.mark.slow
def test_two_processes_of_two_devices_train_as_one_device():
    """16 steps of Bulk-SGD with four solves: replicated parameters, FSDP, and both.

    What differs is the order of sums over devices, so rounding: 6e-8 of a sum, in P
    times the 8 or so of λ₁ over the gap. Over 16 steps that is below 1e-5 of a batch
    loss. In float64 it is 2e-14; should a solve stop one matvec earlier, it would be
    its tolerance of 1e-9, times λ₁ over the gap, per step: below 1e-6.
    """
    runs = {}
    for count, names in (
        (1, ["one", "one:float64"]),
        (2, ["both", "data:float64", "fsdp:float64"]),
    ):
        command = ["tests/sharded_runs.py", *names]
        job = start(lambda _, c=command: c, count=count, num_devices=count)
        statuses, said = wait(job, timeout=900)
        assert statuses == [0] * count, said
        # After what gloo says.
        runs |= json.loads(said[0][0].splitlines()[-1])
    for name, run in runs.items():
        dtype = name.partition(":")[2] or "float32"
        assert (run["failed"], run["dtype"], len(run["losses"])) == (0, dtype, 16)
        one = runs["one" if dtype == "float32" else "one:float64"]
        for field in ("losses", "alignments", "eigenvalues"):
            error = np.max(np.abs(np.divide(run[field], one[field]) - 1))
            print(f"{name} {field}: {error:.1e}")
            assert error < (1e-5 if dtype == "float32" else 1e-6)


@pytest.mark.slow
def test_wrong_input_on_one_process_ends_the_job(tmp_path):
    def command(index):
        size = f"--config.batch_size={40 if index else 41}"
        return main(tmp_path, size, f"--config.seed={index}")(index)

    statuses, said = wait(start(command), timeout=60)
    assert statuses == [2, 2]
    assert "config on process 1 differs from that on process 0" in said[0][1]
    assert "on process 1 differs from process 0" in said[1][1]
    for field in ("batch_size", "seed"):
        assert f"config.{field}" in said[1][1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
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
from bulk_sgd.lab.sweep import grid

def get_config():
    return base("quick")

def get_sweep():
    return grid.values("optimizer.learning_rate", (0.02, 0.05))
"""


@pytest.mark.slow
def test_sweep_of_two_processes_shares_prefixes_and_goes_on(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)

    def command(index, *more):
        # Only process 0 needs its workdir, here at another place for each.
        return (
            *("-m", "bulk_sgd.sweep", "--distributed=on", *more),
            *(f"--workdir={tmp_path}/sweep{index}", f"--config={tmp_path}/sweep.py"),
            *(*CONFIG[1:], "--config.sharding.fsdp=2"),
        )

    statuses, said = wait(start(lambda index: command(index, "--lanes=2")))
    assert statuses == [0, 0], said
    assert "2 cells, 2 complete" in said[0][0]
    in_lockstep = rows_of(tmp_path / "sweep0" / "cells" / "001")
    assert len(list((tmp_path / "sweep0" / "prefixes").iterdir())) == 2
    # A cell that is lost starts again, from the prefix that was kept.
    shutil.rmtree(tmp_path / "sweep0" / "cells" / "001")
    statuses, said = wait(start(command))
    assert statuses == [0, 0], said
    assert "1 of 2 cells had ended before" in said[0][1]
    assert "2 cells, 2 complete" in said[0][0]
    assert "cells" not in said[1][0] + said[1][1]
    assert not (tmp_path / "sweep1").exists()
    ordered = lambda rows: sorted(rows, key=lambda row: (row["arm"], row["step"]))
    # Lanes give what single runs give: `vmap` batches products, which then round in
    # another order, and solves to 1e-5 end elsewhere.
    alone = rows_of(tmp_path / "sweep0" / "cells" / "001")
    for mine, other in zip(ordered(alone), ordered(in_lockstep), strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
