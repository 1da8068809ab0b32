"""Runs from Python: what `run` and `load` return."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import matplotlib.axes
import numpy as np
import pytest
from paths import ROOT
from tiny_runs import RANK, rows_of, tiny

from bulk_sgd.lab import load, run
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.runs import Result
from bulk_sgd.lab.training.experiment import Experiment


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(tiny(), tmp_path_factory.mktemp("run"))


def test_rows_arms_and_eigenvalues(result):
    assert result.info["status"] == "complete"
    assert result.records == rows_of(result.workdir)
    assert result.arms == ("sgd", "bulk_sgd")
    assert result.eigenvalues("sgd").shape == (
        len(rows_of(result.workdir, "sgd")),
        RANK,
    )
    again = load(result.workdir)
    assert (again.records, again.info) == (result.records, result.info)


def test_every_field_of_a_row_is_documented(result):
    table = (ROOT / "docs/experiments.md").read_text("utf-8")
    assert not [name for name in result.records[-1] if f"`{name}`" not in table]


def test_names_of_arms_may_have_white_space(result):
    found = read_run(result.workdir)
    rows = {"scales(0.5,2)": found.rows["sgd"]}
    found = dataclasses.replace(found, rows=rows, info={})
    spaced = Result(found)
    read = lambda of, arm: (of.steps(arm), of.series(arm, "step"), of.eigenvalues(arm))
    for here, there in zip(read(spaced, "scales(0.5, 2)"), read(result, "sgd")):
        np.testing.assert_array_equal(here, there)
    assert found.summary("scales(0.5, 2)").name == "scales(0.5,2)"


@pytest.mark.parametrize("arm", ["prefix", "sgd", "bulk_sgd"])
def test_parameters_are_those_of_the_last_row(result, arm):
    params = jax.tree.map(jnp.asarray, result.parameters(arm))
    loss = float(Experiment(tiny()).task.train(params))
    last = rows_of(result.workdir, arm)[-1]["train_loss"]
    assert loss == pytest.approx(last, rel=1e-6)  # float32, in another program


def test_start_of_a_run_is_that_of_its_seed(tmp_path):
    config = tiny(seed=1, num_steps=10, measures__own=("own_things:moved",))
    config.measures.options.order = 1
    start = Experiment(config).params
    result = run(config, tmp_path)
    for arm in config.arms:
        ends = result.parameters(arm)
        moved = sum(
            np.abs(ends[layer][name] - np.asarray(x)).sum()
            for layer, part in start.items()
            for name, x in part.items()
        )
        assert result.series(arm, "own/moved/length")[-1] == pytest.approx(moved)
    config.measures.options.ordr = 1
    with pytest.raises(ValueError, match=r"options has ordr, but no function in"):
        Experiment(config)


def test_figures_are_axes_to_restyle(result, tmp_path):
    for figure in ("loss", "alignment", "eigenvalues", "cost"):
        assert all(isinstance(x, matplotlib.axes.Axes) for x in result.axes(figure))
    left, _ = result.axes()
    left.set_title("mine")
    left.figure.savefig(tmp_path / "loss.svg")
    assert len(left.get_lines()) >= 3
    with pytest.raises(ValueError, match="figure is 'own'; it must be one of align"):
        result.axes("own")


def test_a_result_shows_itself_in_a_line(result):
    rows = len(result.records)
    told = f"{result.workdir!s:}': complete, sgd, bulk_sgd, {rows} rows of metrics)"
    assert repr(result) == f"Result('{told}"


def test_a_frame_needs_pandas(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^frame\(\) needs pandas, which is no"
    ):
        result.frame()


def test_records_make_a_frame(result):
    pandas = pytest.importorskip("pandas")
    frame = result.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert np.isfinite(frame.train_loss).all()


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("steps", ("SGD",), "arm is 'SGD'; it must be one of bulk_sgd, prefix, sgd"),
        ("eigenvalues", ("SGD",), "arm is 'SGD'; it must be one of bulk_sgd, prefix"),
        ("series", ("SGD", "train_loss"), "arm is 'SGD'; it must be one of bulk_sgd,"),
        (
            "series",
            ("sgd", "own/movment"),
            "is 'own/movment'; .* of .*, train_loss",
        ),
        ("lists", ("sgd", "eigenvalus"), "key is 'eigenvalus'; it .* of .*eigenvalues"),
        (
            "series",
            ("sgd", "eigenvalues"),
            r"is 'eigenvalues', a list; take lists\(ar",
        ),
        (
            "lists",
            ("sgd", "train_loss"),
            r"'train_loss', a number; take series\(arm",
        ),
    ],
)
def test_a_misspelt_name_is_said(result, method, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(result, method)(*arguments)


def test_fields_that_older_runs_lack_spoil_no_figure(result):
    found = read_run(result.workdir)
    rows = {
        arm: [{"step": x["step"], "train_loss": x["train_loss"]} for x in its_rows]
        for arm, its_rows in found.rows.items()
    }
    old = dataclasses.replace(found, rows=rows)
    assert Result(old).axes("loss")
    assert np.isnan(old.summary("sgd").sharpness)


def test_what_is_not_there_is_said(result, tmp_path):
    with pytest.raises(ValueError, match="arm is 'adam'; it must be one of bulk_sgd"):
        result.parameters("adam")
    with pytest.raises(FileNotFoundError, match="expected the workdir of a run"):
        load(tmp_path)
    bare = tiny(num_steps=9, checkpoint__every=0, arms=("sgd",))
    with pytest.raises(FileNotFoundError, match=r"sgd.npz: .*config.checkpoint.ends"):
        run(bare, tmp_path).parameters("sgd")
