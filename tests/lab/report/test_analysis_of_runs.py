"""An analysis of the checkpoints of a run, and its command."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat
from paths import ROOT

from bulk_sgd.curvature import second_derivatives
from bulk_sgd.lab.analysis.checkpoints import RunPoints
from bulk_sgd.lab.files import record
from bulk_sgd.lab.training.checkpoint import Checkpoints


def test_points_of_a_run(run):
    found = RunPoints(run)
    names = [saved.name for saved in found.saved]
    assert names[:4] == ["prefix@2", "prefix@4", "prefix@6", "fork@8"]
    assert names[4:7] == ["sgd@10", "sgd@12", "sgd@14"]
    assert {saved.path for saved in found.saved} == {"prefix", "sgd", "bulk_sgd"}
    some = RunPoints(run, ["bulk_sgd"], every=4)
    names = [saved.name for saved in some.saved]
    assert names == ["prefix@4", "fork@8", "bulk_sgd@12", "bulk_sgd@16"]
    assert [s.name for s in RunPoints(run, names=["sgd@12"]).saved] == ["sgd@12"]
    points = list(some)
    assert [point.name for point in points] == names
    # The update of plain SGD is minus the rate times the gradient of the next batch.
    experiment = found._experiment
    point = points[0]
    batch = experiment.task.train.take(experiment.indices(4)[0])
    gradient = flat(jax.grad(batch)(point.params))
    rate = experiment.config.optimizer.learning_rate
    np.testing.assert_allclose(flat(point.update), -rate * gradient, atol=1e-6)


def test_a_run_that_reads_data_while_training_and_forks_by_alignment(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    written = record.read(tmp_path)
    written["fingerprints"]["data"] = "of others"
    record.write(tmp_path, written)
    with pytest.raises(ValueError, match="holds a run of other data than"):
        RunPoints(tmp_path)
    del written["fingerprints"]  # as in early versions
    config = written["config"]
    config["data"]["streaming"] = True
    config["switch"]["alignment"] = 1e-6
    config["subspace"] |= {"data": "subset", "subset_size": 30}
    config["subspace"]["mode"] = second_derivatives.FORWARD
    config["sharding"] = {"data": 2, "fsdp": 4}  # of devices not here
    record.write(tmp_path, written)
    found = RunPoints(tmp_path, names=["fork@8"])
    assert found.mode == second_derivatives.FORWARD
    assert found.notes == [
        "The loss is taken over 30 of the 60 training examples, the "
        "run's seeded subset.",
        "The run was recorded without fingerprints of its data and program.",
    ]
    (point,) = found
    experiment = found._experiment
    batch = experiment.dataset.train_inputs, experiment.dataset.train_targets
    inputs, targets = (jnp.asarray(x[experiment.indices(8)[0]]) for x in batch)
    loss = dataclasses.replace(experiment.task.train, inputs=inputs, targets=targets)
    gradient = flat(jax.grad(loss)(point.params))
    rate = experiment.config.optimizer.learning_rate
    np.testing.assert_allclose(flat(point.update), -rate * gradient, atol=1e-6)
    config["optimizer"]["name"], config["measures"]["every"] = "adam", 0
    config["subspace"]["preconditioned"] = True
    record.write(tmp_path, written)
    assert "on the Hessian itself" in RunPoints(tmp_path).notes[1]


def test_a_damaged_checkpoint_is_left_as_it_is(run, capsys):
    [last, *_] = sorted(Checkpoints(run, read_only=True).stories(), reverse=True)
    found = RunPoints(run)
    folder = run / "checkpoints" / "states" / str(last)
    array = next(path for path in (folder / "state" / "d").iterdir())
    content = array.read_bytes()
    array.write_bytes(b"")
    try:
        assert len(list(found)) == len(found) - 1
        assert f"states/{last} cannot be read" in capsys.readouterr().err
    finally:
        array.write_bytes(content)
    assert len(list(RunPoints(run))) == len(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arms": ["adam"]}, "arm is 'adam'; it must be one of bulk_sgd, sgd"),
        ({"every": -1}, "every is -1; it must be at least 0"),
        ({"names": ["sgd@1"]}, "checkpoint is 'sgd@1'; it must be one of .*sgd@10"),
    ],
)
def test_what_a_run_does_not_have_is_refused(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        RunPoints(run, **arguments)


@pytest.mark.slow
def test_command(run, tmp_path):
    command = [sys.executable, "-m", "bulk_sgd.analyze", f"--workdir={run}"]
    small = [
        "--rank=2",
        "--density_probes=2",
        "--density_steps=5",
        "--trace_probes=2",
        "--block_rank=1",
        "--slice_points=3",
        "--checkpoints=prefix@6,sgd@10",
    ]
    call = lambda *more: subprocess.run(
        [*command, *small, *more], capture_output=True, text=True, cwd=ROOT
    )
    done = call()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "analysis" / "index.html")
    found = json.loads((run / "analysis" / "analysis.json").read_text())
    assert [point["name"] for point in found["points"]] == ["prefix@6", "sgd@10"]
    assert found["run"]["name"] == "default"
    assert "sgd@10" in (run / "analysis" / "index.html").read_text()
    refused = call("--rank=3")
    assert refused.returncode == 2
    assert "settings.rank" in refused.stderr
    assert refused.stderr.count("\n") == 1
