"""Networks, labels and losses of a config that do not go together."""

import re

import numpy as np
import own_things
import pytest
from tiny_runs import tiny

from bulk_sgd.lab.report.narrative import state
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment

INPUTS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def test_float_targets_are_for_a_loss_of_ones_own(monkeypatch, tmp_path):
    arrays = {f"x_{part}": INPUTS for part in ("train", "test")}
    arrays |= {f"y_{part}": INPUTS[:, 0] for part in ("train", "test")}
    monkeypatch.setattr(own_things, "images", lambda: arrays)
    np.savez(tmp_path / "same.npz", **arrays)
    for name in ("own_things:images", str(tmp_path / "same.npz")):
        config = on_five(data__name=name)
        with pytest.raises(ValueError, match="which takes integer labels; those of"):
            Experiment(config)
        config.loss.name = "own_things:distance"
        assert Experiment(config).dataset.train_targets.dtype == np.float32
        config.loss.name = "optax:l2_loss"  # not one per example
        with pytest.raises(ValueError, match="optax:l2_loss"):
            Experiment(config)


def on_five(**changes):
    """A tiny run on five examples of data of one's own."""
    fields = {"data__name": "own_things:images", "data__normalization": "none"}
    config = tiny(**fields | changes)
    config.data.num_train = config.data.num_test = 0
    config.batch_size = 5
    return config


def arrays_of(labels, tested=(0, 1, 2, 2, 2)):
    arrays = {f"x_{part}": INPUTS for part in ("train", "test")}
    return arrays | {"y_train": np.array(labels), "y_test": np.array(tested)}


@pytest.mark.parametrize(
    ("model", "loss", "sentence"),
    [
        ("two", "squared_error", r"which fails with ValueError"),
        ("two", "mse", r"which has 2 outputs, but the labels of .* go up to 2\."),
        ("flat", "mse", r"has .*shape \(1,\) for one .*needs \(1, 3\), one per exam"),
        ("deep", "mse", r"has .*shape \(1, 1, 3\) for one example, .*needs \(1, 3\), "),
        ("couple", "mse", "which returns a tuple; it must return one array"),
        ("equinox", "distance", r"\(1, 3\) for .* targets of shape \(1,\), of on"),
        ("single", "distance", None),  # a score of its own, and no class
        ("equinox", "mse", None),
    ],
)
def test_outputs_fit_the_labels(monkeypatch, model, loss, sentence):
    monkeypatch.setattr(own_things, "images", lambda: arrays_of([0, 1, 2, 0, 1]))
    own = loss if loss == "mse" else f"own_things:{loss}"
    config = on_five(model__name=f"own_things:{model}", loss__name=own)
    if sentence is None:
        assert Experiment(config).doubts == []
        return
    with pytest.raises(ValueError, match=rf"^config\..*{sentence}"):
        Experiment(config)


def test_fewer_outputs_than_classes_are_told_of_a_loss_of_ones_own(monkeypatch):
    monkeypatch.setattr(own_things, "images", lambda: arrays_of([0, 1, 2, 0, 1]))
    config = on_five(model__name="own_things:two", loss__name="own_things:ordinal")
    assert Experiment(config).doubts == [
        "config.model.name is 'own_things:two', which has 2 outputs, but the labels of "
        "config.data.name = 'own_things:images' go up to 2: the accuracy means "
        "nothing, and config.loss.name must be for such outputs."
    ]


def test_labels_that_no_training_example_has_are_told(monkeypatch, capsys, tmp_path):
    arrays = arrays_of([0, 1, 0, 1, 40], tested=[0, 1, 2, 2, 2])
    monkeypatch.setattr(own_things, "images", lambda: arrays)
    config = on_five(num_steps=8)
    told = train.train_and_evaluate(config, tmp_path)["doubts"]
    assert capsys.readouterr().err.splitlines()[:2] == told
    assert state(read_run(tmp_path)) == told
    assert told == [
        "config.data.name is 'own_things:images': labels go from 0 to 40, but no "
        "training example has label 2, 3, 4, … (38); test examples have 2.",
        "config.num_steps and config.switch.step are both 8: the run ends at its fork, "
        "and no arm takes a step.",
    ]


@pytest.mark.parametrize(
    ("solver", "every", "sentence"),
    [
        ("lanczos", 1, None),
        (
            "lanczos",
            5,
            r"until 30 matvecs .* its 3 refreshes take about 18: lower .*refresh_every"
            r", 5 or lower .*switch\.step, 8 or raise .*num_steps, 20\.",
        ),
        ("power", 1, None),
        (
            "streaming",
            1,
            r"its 12 refreshes take about 12: lower config\.switch\.step, 8 or raise "
            r"config\.num_steps, 20\.",
        ),
    ],
)
def test_guards_that_wait_until_the_run_ends_are_told(solver, every, sentence):
    fields = {"subspace__solver": solver, "subspace__refresh_every": every}
    config = tiny(arms=("sgd", "accelerated"), **fields)
    found = Experiment(config).doubts
    assert len(found) == (sentence is not None)
    if sentence:
        assert re.search(sentence, found[0])
    config.arms = ("sgd",)
    assert Experiment(config).doubts == []


@pytest.mark.parametrize(("steps", "told"), [(17, True), (18, False)])
@pytest.mark.parametrize("keep", ["all", "gap"])
def test_streaming_that_acts_seldom_settles_in_its_first_sweeps(keep, steps, told):
    config = tiny(arms=("accelerated",), num_steps=steps, switch__step=0)
    space = {"solver": "streaming", "every": 16, "gain": 0.4, "keep": keep}
    config.subspace.update(space)
    sentence = "until 18 matvecs .* about 17: raise config.num_steps, 17"
    found = Experiment(config).doubts
    assert [bool(re.search(sentence, x)) for x in found] == [True] * told


def test_guarded_arms_have_no_negative_scales():
    with pytest.raises(ValueError, match=r"'accelerated\(-1,2\)'; its scales must be"):
        Experiment(tiny(arms=("accelerated(-1, 2)",)))
