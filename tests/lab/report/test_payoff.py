"""Tuned sweeps side by side: what rows cost, and the medians over sweeps."""

import json
import math

import numpy as np
import pytest
from written_studies import edit_info, write_axis, write_cell, write_tuned

from bulk_sgd.lab.report import payoff, payoff_section, study
from bulk_sgd.lab.report.write import write_report
from bulk_sgd.lab.sweep import grid, workdir

TUNE = {"field": "optimizer.learning_rate", "reference": "plain"}
PLAIN = {0.1: (0.5, 0.5), 0.2: (0.25, 0.25), 0.4: (0.5, 0.5)}
FAST, FASTER = {0.1: (0.02, 0.02)}, {0.1: (0.002, 0.004)}
SLOW, HALF = {0.1: (2.0, 2.0)}, {0.1: (0.02, 2.0), 0.2: (3.0, 3.0)}
DIVERGED = {0.1: (math.nan, math.nan)}
SGD = {"name": "sgd", "momentum": 0.0}
ADAMW = {"name": "adamw", "momentum": 0.9}  # a momentum that it does not use


def share(end):
    """Of 40 steps, those to a loss of 0.25, linear between rows of ten steps."""
    losses = 4 * (end / 4) ** (np.arange(5) / 4)
    return np.interp(-0.25, -losses, np.arange(5)) / 4


# The median of two seeds is their mean.
TWO = (share(0.002) + share(0.004)) / 2


def change(file, edit):
    """Passes each line of a file of JSON through a function."""
    lines = map(json.loads, file.read_text().splitlines())
    file.write_text("".join(json.dumps(edit(line)) + "\n" for line in lines))


def slowed(row):
    """A row of an arm with thrice the seconds and half the test loss."""
    factors = {"seconds": 3, "seconds_curvature": 3, "test_loss": 0.5}
    factors = factors if row["arm"] != "prefix" else {}
    return row | {key: x * row[key] for key, x in factors.items()}


def write(folder, settings, optimizer=None):
    """A sweep of "plain" and others, in which a step of "fast" is `slowed`."""
    cells = write_tuned(folder, {"plain": PLAIN, **settings}, TUNE)
    configured = lambda run: run | {"config": {"optimizer": optimizer}}
    for index, cell in enumerate(cells):
        where = workdir.cell_folder(folder, index)
        if cell["label"] == "fast":
            change(where / "metrics.jsonl", slowed)
        if optimizer:
            change(where / "run.json", configured)


@pytest.fixture
def found(tmp_path):
    write(tmp_path / "cnn", {"fast": FAST, "slow": SLOW, "half": HALF}, SGD)
    write(tmp_path / "mlp", {"fast": FAST}, ADAMW)
    write(tmp_path / "vit", {"fast": FASTER, "slow": DIVERGED}, SGD)
    write_tuned(tmp_path / "alone", {"plain": PLAIN}, TUNE)
    write_axis(tmp_path / "untuned", grid.values("batch_size", (5, 10)))
    return payoff.sweeps(study.read_study(tmp_path))


def test_sweeps_compare_something(found):
    assert [sweep.axis.name for sweep in found] == ["cnn", "mlp", "vit"]
    assert all(sweep.reference.name == "plain" for sweep in found)


def test_medians_are_over_the_sweeps_of_an_optimizer(found):
    medians = payoff_section.medians(found)
    names = [(x["optimizer"], x["row"], x["sweeps"], x["reached"]) for x in medians]
    assert names == [
        ("sgd", "fast", 2, 2),
        ("sgd", "slow", 2, 0),  # it never gets there, or diverges at every rate
        ("sgd", "half", 1, 0),
        ("adamw", "fast", 1, 1),
    ]
    first, slow, half, other = medians
    assert first["steps"] == pytest.approx((share(0.02) + TWO) / 2)
    assert first["seconds"] == pytest.approx(3 * first["steps"])
    assert first["test_share"] == pytest.approx(0.5)
    assert slow["steps"] == math.inf
    assert math.isnan(slow["test_share"])
    # One of its two seeds gets there, but not their median.
    assert math.isnan(half["test_share"])
    assert other["steps"] == pytest.approx(share(0.02))


def test_rows_join_by_their_arm_and_what_sets_them_apart(tmp_path):
    """The sweep "b" has two settings, one of them the reference's."""
    rates = grid.values(TUNE["field"], (0.1, 0.2))
    metric = grid.values("subspace.preconditioned", (False, True))
    ranks = grid.values("subspace.rank", (5,))
    sweeps = {"a": rates, "b": grid.product(metric, rates)}
    sweeps["c"] = grid.product(grid.labelled("wide", ranks), metric, rates)
    for name, cells in sweeps.items():
        for index in range(len(cells)):
            write_cell(tmp_path / name, index, ("sgd", "bulk_sgd"))
            edit_info(tmp_path / name, index, config={"optimizer": SGD})
        write_axis(tmp_path / name, cells, tune=TUNE | {"reference": "sgd"})
    found = payoff.sweeps(study.read_study(tmp_path))
    rows = [(x["row"], x["sweeps"]) for x in payoff_section.medians(found)]
    assert rows == [("bulk_sgd", 3), ("preconditioned True: bulk_sgd", 2)]
    assert [*payoff_section._looks(found)] == [row for row, _ in rows]


def test_a_label_stands_for_the_values_that_its_cells_share(tmp_path):
    """A label names a row also where tasks give it other values."""
    rates = grid.values(TUNE["field"], (0.1, 0.2))
    arms = {arm: grid.values("arms", ((arm,),)) for arm in ("sgd", "bulk_sgd")}
    for name, rank in (("a", 5), ("b", 10)):
        bulk = grid.product(arms["bulk_sgd"], grid.values("subspace.rank", (rank,)))
        cells = grid.chain(
            grid.product(arms["sgd"], rates),
            grid.product(arms["bulk_sgd"], rates),
            grid.product(grid.labelled("small", bulk), rates),
        )
        for index, cell in enumerate(cells):
            write_cell(tmp_path / name, index, cell["arms"])
            edit_info(tmp_path / name, index, config={"optimizer": SGD})
        write_axis(tmp_path / name, cells, tune=TUNE | {"reference": "sgd"})
    medians = payoff_section.medians(payoff.sweeps(study.read_study(tmp_path)))
    rows = [(x["row"], x["sweeps"]) for x in medians]
    assert rows == [("bulk_sgd", 2), ("small", 2)]


def test_a_row_of_other_data_has_no_median(tmp_path):
    write(tmp_path / "one", {"fast": FAST, "slow": SLOW}, SGD)
    for index in (6, 7):
        file = workdir.cell_folder(tmp_path / "one", index) / "run.json"
        change(file, lambda run: run | {"loss_label": "another"})
    found = payoff.sweeps(study.read_study(tmp_path))
    assert [x["row"] for x in payoff_section.medians(found)] == ["slow"]
    payoff_section.payoff_figure(found)


def test_sweeps_without_configs_stand_for_themselves(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, {"fast": FAST})
    medians = payoff_section.medians(payoff.sweeps(study.read_study(tmp_path)))
    assert [(x["optimizer"], x["sweeps"]) for x in medians] == [("a", 1), ("b", 1)]


def test_figure_shows_medians_ranges_and_who_never_gets_there(found):
    figure = payoff_section.payoff_figure(found)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["cnn", "mlp", "vit"]
    for axes, price in zip(figure.axes, (1, 3)):
        rim = axes.get_xlim()[1]
        points = [line for line in axes.lines if line.get_marker() not in ("None", ">")]
        places = [(line.get_ydata()[0], line.get_xdata()[0]) for line in points]
        # From the top: three rows of cnn, a line, one row of mlp, a line, vit's rows.
        expected = [(1, share(0.02)), (5, share(0.02)), (7, TWO)]
        assert places == [(y, pytest.approx(price * x)) for y, x in expected]
        arrows = [line for line in axes.lines if line.get_marker() == ">"]
        assert [line.get_ydata()[0] for line in arrows] == [2, 3, 8]
        assert {line.get_xdata()[0] for line in arrows} == {rim}
        bars = {
            line.get_ydata()[0]: sorted(line.get_xdata())
            for line in axes.lines
            if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"
        }
        # One of two seeds gets there, at the price of the plain optimizer's steps.
        assert bars[3] == pytest.approx([share(0.02), rim])
        assert bars[7] == pytest.approx([price * share(x) for x in (0.002, 0.004)])


def test_ticks_of_a_wide_range_do_not_touch():
    _, (axes,) = payoff_section.style.new_figure(1, 1, (5, 2))
    assert payoff_section._log_x(axes, [0.01, 30.0]) == pytest.approx(33)
    assert 3 <= len(axes.get_xticks()) <= 6
    assert 1 in axes.get_xticks()


def test_rows_have_marks_of_their_own(found):
    looks = payoff_section._looks(found)
    assert [*looks] == ["fast", "slow", "half"]
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 3


def test_a_study_of_several_tuned_sweeps_has_a_section(found, tmp_path):
    page = write_report(tmp_path)
    text = page.read_text()
    assert text.count("<h2>Does it pay?</h2>") == 1
    assert page.with_name("payoff.png").stat().st_size > 10_000
    assert "cnn (sgd): plain, 0.2<" in text
    assert "mlp (adamw): plain, 0.2<" in text
    assert "Medians over sweeps, sgd" in text
    assert "<td>2 sweeps, 0 reach the loss</td>" in text
    assert "Medians over sweeps, adamw" not in text
    assert "<td>all diverged</td>" in text
    numbers = json.loads(page.with_name("tables.json").read_text())["payoff"]
    assert [row["row"] for row in numbers] == ["fast", "slow", "half", "fast"]
    assert [numbers[1][key] for key in ("steps", "test_share")] == ["never", None]
    claims = page.with_name("claims.md").read_text()
    assert "| Saves steps against plain: slow (vit) |" in claims
    alone = write_report(tmp_path / "cnn")
    assert "Does it pay?" not in alone.read_text()
    assert "payoff" not in json.loads(alone.with_name("tables.json").read_text())
