"""Finished runs go on to more steps and arms, to the rows of one long run."""

import sys

import pytest
from interruptions import Killed, config, interrupt_after, kill_at, without_times
from tiny_runs import numbers, tiny

from bulk_sgd.lab.files import identities, record
from bulk_sgd.lab.training import stability, train


def short(**changes):
    """Ends with half a dispatch, and lacks an arm."""
    return config(num_steps=13, arms=("sgd",), **changes)


def rows_by_arm(workdir):
    return sorted(numbers(workdir), key=lambda row: (row["arm"], row["step"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that had all steps and arms from the start."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train.train_and_evaluate(config(), workdir)


def check_equal(workdir, result, whole):
    assert rows_by_arm(workdir) == rows_by_arm(whole[0])
    assert without_times(result) == without_times(whole[1])
    assert (result["status"], result["config"]["num_steps"]) == ("complete", 20)
    assert not (workdir / "attempts").exists()


def test_grown_run_equals_one_long_run(whole, tmp_path, monkeypatch, capsys):
    """Interrupted on its way, in the arm that is new."""
    first = train.train_and_evaluate(short(), tmp_path)["command"]
    monkeypatch.setattr(sys, "argv", [sys.argv[0], "--config.num_steps=20"])
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(config(), tmp_path)
    result = train.train_and_evaluate(config(), tmp_path)
    told = capsys.readouterr().err
    assert "going on from sgd, step 12.\n" in told
    assert "going on from bulk_sgd, step 12.\n" in told
    before, grown = result["command"].splitlines()
    assert (before, grown.split()[-1]) == (first, "--config.num_steps=20")
    check_equal(tmp_path, result, whole)


def test_stable_rates_are_searched_once(tmp_path, monkeypatch):
    fields = {"stability__rounds": 1, "stability__num_steps": 2, "arms": ("sgd",)}
    first = train.train_and_evaluate(config(num_steps=13, **fields), tmp_path)
    monkeypatch.setattr(stability, "Bisection", None)
    grown = train.train_and_evaluate(config(num_steps=20, **fields), tmp_path)
    rates = [run["arms"]["sgd"]["stable_rate"] for run in (first, grown)]
    assert rates[0] == rates[1]
    assert grown["arms"]["sgd"]["last_step"] == 20


def test_killed_while_it_grows_without_a_checkpoint_since(whole, tmp_path, monkeypatch):
    every = {"checkpoint__every": 1_000}
    train.train_and_evaluate(short(**every), tmp_path)
    for arm, step in (("sgd", 16), ("bulk_sgd", 14)):
        with monkeypatch.context() as patch:
            kill_at(patch, arm, step)
            with pytest.raises(Killed):
                train.train_and_evaluate(config(**every), tmp_path)
    result = train.train_and_evaluate(config(**every), tmp_path)
    check_equal(tmp_path, result, whole)


def test_without_kept_ends_arms_start_from_the_fork(whole, tmp_path, capsys):
    none = {"checkpoint__ends": 0.0, "checkpoint__every": 1_000}
    train.train_and_evaluate(short(**none), tmp_path)
    assert not (tmp_path / record.CHECKPOINTS / "ends").exists()
    result = train.train_and_evaluate(config(**none), tmp_path)
    assert "going on from the fork, step 8" in capsys.readouterr().err
    check_equal(tmp_path, result, whole)


def test_finished_run_keeps_what_it_has_beyond_a_config(whole, capsys):
    workdir, result = whole
    smaller = config(num_steps=10, arms=("bulk_sgd",), name="other")
    again = train.train_and_evaluate(smaller, workdir)
    assert "20 steps of sgd, bulk_sgd; it keeps them" in capsys.readouterr().err
    assert again.pop("name") == again["config"].pop("name") == "other"
    assert record.read(workdir)["name"] == "other"
    renamed = train.train_and_evaluate(config(), workdir)
    assert renamed == result


def test_finished_run_without_its_fork_is_refused(tmp_path):
    train.train_and_evaluate(tiny(num_steps=10, checkpoint__every=0), tmp_path)
    before = numbers(tmp_path)
    with pytest.raises(ValueError, match=r"without the checkpoint at its fork.*every"):
        train.train_and_evaluate(tiny(checkpoint__every=0), tmp_path)
    assert numbers(tmp_path) == before


def test_only_what_leaves_earlier_steps_alone_can_grow():
    def conflicts(**changes):
        return identities.conflicts(
            *map(identities.plain, (config(), config(**changes)))
        )

    more = ("scales( 1, 2)", "bulk_sgd ", "sgd")
    assert not conflicts(num_steps=30, arms=more, name="x", checkpoint__every=5)
    assert conflicts(num_steps=19) == ["config.num_steps"]
    assert conflicts(arms=("sgd", "dom_sgd")) == ["config.arms"]
    changes = {"optimizer__decay_steps": 30, "num_steps": 30}
    assert conflicts(**changes) == ["config.optimizer.decay_steps"]
