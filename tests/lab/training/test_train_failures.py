"""Runs that diverge, are interrupted, or are refused before they begin."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import EVERY, STEPS, rows_of, tiny

from bulk_sgd.lab.files import loggers, metrics, record
from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment


def test_diverged_arm_is_recorded_and_the_others_go_on(tmp_path):
    names = ("scales(1, 1e6)", "sgd")
    result = train.train_and_evaluate(tiny(arms=names), tmp_path)
    assert result["status"] == "complete"
    assert result["arms"]["scales(1,1e6)"]["status"] == "diverged"
    assert result["arms"]["scales(1,1e6)"]["last_step"] < STEPS
    assert result["arms"]["sgd"]["status"] == "complete"
    assert rows_of(tmp_path, "scales(1,1e6)")[-1]["train_loss"] is None
    assert np.isfinite(rows_of(tmp_path, "sgd")[-1]["train_loss"])


def test_diverged_prefix_ends_the_run(tmp_path):
    result = train.train_and_evaluate(tiny(optimizer__learning_rate=1e9), tmp_path)
    assert result["status"] == result["prefix"]["status"] == "diverged"
    assert result["arms"]["sgd"]["status"] == "pending"


def test_interrupted_run_says_so_and_starts_again(tmp_path, monkeypatch):
    config = tiny(checkpoint__every=0)
    write, ends = metrics.MetricWriter.write, {}

    def interrupt(self, row):
        if (row["arm"], row["step"]) == ("bulk_sgd", 13):
            raise KeyboardInterrupt
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricWriter, "write", interrupt)
        patch.setattr(loggers.Loggers, "close", lambda self, x: ends.update(x))
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config, tmp_path)
    stored = record.read(tmp_path)
    assert ends == {name: x["status"] for name, x in record.entries(stored).items()}
    assert stored["status"] == stored["arms"]["bulk_sgd"]["status"] == "interrupted"
    assert stored["arms"]["sgd"]["status"] == "complete"
    kept = rows_of(tmp_path)
    assert train.train_and_evaluate(config, tmp_path)["status"] == "complete"
    assert rows_of(tmp_path / "attempts" / "1") == kept
    assert rows_of(tmp_path, "bulk_sgd")[-1]["step"] == STEPS


def test_guarded_arms_rest_after_a_failed_solve_until_one_succeeds():
    made = Experiment(tiny(optimizer__momentum=0.3, arms=("accelerated",)))
    (arm,), good = made.arms, made.task.curvature
    bad = dataclasses.replace(good, inputs=jnp.nan * good.inputs)
    state, shares = made.start(), []
    for curvature, every in ((good, 1), (good, 1), (bad, 1), (good, 10**6), (good, 1)):
        task = made.task.with_curvature(curvature)
        scalars = made.scalars(arm)._replace(refresh_every=every)
        given = made.feed(int(state.step)), EVERY, scalars
        state, trace = made.programs.train(state, task, *given, projected=True)
        shares.append(float(trace.scaled.mean()))
    assert shares[1] > 0
    assert shares[2:] == [0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch_size": 61}, r"batch_size is 61; it must be from 1 to 60"),
        ({"subspace__rank": 10**6, "subspace__max_matvecs": 10**6}, "rank is 1000000"),
        ({"subspace__data": "subset"}, r"subset_size is 1000.*1 to 60"),
        ({"model__name": "mpl"}, r"model\.name is 'mpl'"),
        ({"loss__name": "hinge"}, r"loss\.name is 'hinge'"),
        ({"data__name": "mnist6k"}, r"config\.data\.name is 'mnist6k'"),
        ({"data__name": "none.npz"}, r"config\.data\.name is 'none\.npz'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_made(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        train.train_and_evaluate(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def command(workdir, *more):
    return [
        *(sys.executable, "-m", "bulk_sgd.main", "--config=configs/mnist_mlp.py:quick"),
        *(f"--workdir={workdir}", "--config.progress=False", *more),
    ]


def test_binary_refuses_with_one_sentence(tmp_path):
    wrong = command(tmp_path / "run", "--config.subspace.rank=0")
    result = subprocess.run(wrong, capture_output=True, text=True)
    assert result.returncode == 2
    assert "config.subspace.rank is 0" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_binary_ended_by_sigterm_leaves_an_interrupted_record(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command(tmp_path), env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / record.FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert record.read(tmp_path)["status"] == "interrupted"
