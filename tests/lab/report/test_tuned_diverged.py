"""Reports of tuned sweeps in which runs diverged."""

import json
import math

import numpy as np
import pytest
from written_studies import edit_info, write_tuned

from bulk_sgd.lab.report import payoff, study, tuned, tuned_section
from bulk_sgd.lab.report.write import write_report
from bulk_sgd.lab.sweep import workdir

TUNE = {"field": "optimizer.learning_rate", "reference": "plain"}
PLAIN = {0.1: (0.25, 0.25, 0.25), 0.2: (1.0, 1.0, 1.0)}
FAST = {0.1: (0.02, 0.02, 0.02), 0.2: (1.0, 1.0, 1.0)}
LOST = {0.1: (math.nan,) * 3, 0.2: (math.nan,) * 3}


def rows_of(folder, **settings):
    """The axis and rows of a sweep whose settings are written as in `write_tuned`."""
    write_tuned(folder, settings, TUNE)
    return read(folder)


def read(folder):
    (axis,) = study.read_study(folder)
    return axis, tuned.rows(axis)


def diverge(folder, index, step, arm="sgd"):
    """Ends a run as diverged, with the rows up to a step; or its prefix, if named."""
    arms = {"sgd": {"dominant_scale": 1.0, "bulk_scale": 1.0, "status": "diverged"}}
    switch = {"step": 0} if arm == "sgd" else None
    edit_info(folder, index, status="diverged", arms=arms, switch=switch)
    file = workdir.cell_folder(folder, index) / "metrics.jsonl"
    rows = [json.loads(line) | {"arm": arm} for line in file.read_text().splitlines()]
    rows = [row for row in rows if row["step"] <= step]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tables(folder):
    """The page of a report, and the rows of the sweep in tables.json."""
    page = write_report(folder)
    found = json.loads(page.with_name("tables.json").read_text())["tuned"]
    return page.read_text(), {row["row"]: row for row in found[folder.name]}


def test_a_sweep_in_which_all_diverged_says_so(tmp_path):
    rows_of(tmp_path, plain=LOST, other=LOST)
    page, found = tables(tmp_path)
    assert "nothing is compared" in page
    assert found["other"]["costs"] == []


def test_a_seed_of_the_reference_that_diverged_is_no_target(tmp_path):
    once = {0.1: (0.5, math.nan, 0.5), 0.2: (1.0, 1.0, 1.0)}
    other = {0.1: (0.5, 0.5, 0.5), 0.2: (1.0, 1.0, 1.0)}
    axis, (plain, other) = rows_of(tmp_path, plain=once, other=other)
    costs = tuned.costs(axis, other, plain)
    assert [cost["steps"] for cost in costs] == [1, 1, 1]


def test_a_seed_that_diverged_after_it_reached_the_loss_never_did(tmp_path):
    rows_of(tmp_path, plain=PLAIN, fast=FAST)
    diverge(tmp_path, 7, 40)
    axis, (plain, fast) = read(tmp_path)
    assert fast.best == 0.1
    first, lost, last = tuned.costs(axis, fast, plain)
    assert first == last
    assert first["steps"] < 1
    assert lost["steps"] == lost["seconds"] == lost["own_matvecs"] == math.inf
    assert math.isnan(lost["test_loss"])
    assert math.isnan(lost["test_share"])
    page, found = tables(tmp_path)
    assert "<td>2 of 3</td>" in page
    assert [claim.verdict for claim in payoff.claims(payoff.sweeps([axis]))] == [
        "undecided",
        "undecided",
    ]
    _, costs, _ = found["fast"]["costs"]
    assert (costs["steps"], costs["seconds"]) == ("never", "never")
    # SGD has no matvecs to compare with, and a run that diverged has no last loss.
    assert costs["matvecs"] is costs["test_share"] is costs["end"] is None


def test_a_row_that_always_diverged_never_gets_there(tmp_path):
    axis, (plain, lost) = rows_of(tmp_path, plain=PLAIN, lost=LOST)
    costs = tuned.costs(axis, lost, plain)
    assert [cost["steps"] for cost in costs] == [math.inf] * 3
    assert [cost["seconds"] for cost in costs] == [math.inf] * 3
    (sweep,) = payoff.sweeps([axis])
    assert sweep.rivals[0].shares("steps") == [math.inf] * 3
    page, found = tables(tmp_path)
    row = page[page.index("<td>all diverged</td>") :]
    cells = row[: row.index("</tr>")].split("</td><td>")
    assert cells[1:4] == ["diverged", "never", "never"]
    assert "0 of 3" in cells[-1]
    assert [cost["steps"] for cost in found["lost"]["costs"]] == ["never"] * 3


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (None, "diverged at every learning rate that has ended"),
        ("running", "has no learning rate whose seeds have all ended"),
    ],
)
def test_no_row_takes_the_place_of_the_reference(tmp_path, status, why):
    folder = tmp_path / "rates"
    rows_of(folder, plain=LOST, fast=FAST, other=PLAIN)
    for index in (0, 3) if status else ():
        edit_info(folder, index, status=status)
    axis, rows = read(folder)
    assert tuned.reference(axis, rows) is None
    assert payoff.sweeps([axis]) == []
    page, found = tables(folder)
    assert f"The reference, plain, {why}, so nothing is compared." in page
    assert [row["costs"] for row in found.values()] == [[]] * len(rows)
    report = folder / "report"
    assert not (report / "claims.md").exists()
    assert not (report / "rates-race.png").exists()
    assert (report / "rates-tuning.png").stat().st_size > 10_000


@pytest.mark.parametrize("arm", ["sgd", "prefix"])
def test_the_race_goes_on_without_a_seed_that_diverged(tmp_path, arm):
    rows_of(tmp_path, plain={0.1: (0.3, 0.2, 1e-4), 0.2: (1.0,) * 3}, fast=FAST)
    diverge(tmp_path, 2, 20, arm)
    axis, rows = read(tmp_path)
    for axes, unit in zip(tuned_section.race_figure(axis, rows).axes, (1, 0.06)):
        line = axes.lines[0]
        steps = np.arange(0, 50, 10)
        assert line.get_xdata() == pytest.approx(unit * steps)
        # From 30 steps on, the third seed is the highest.
        ends = np.where(steps > 20, 0.3, 0.2)
        assert line.get_ydata() == pytest.approx(4 * (ends / 4) ** (steps / 40))


def test_the_race_has_the_rows_of_all_seeds(tmp_path):
    """Forks by alignment are at other steps in each seed, and have a row."""
    rows_of(tmp_path, plain={0.1: (0.5, 0.5), 0.2: (1.0, 1.0)})
    file = workdir.cell_folder(tmp_path, 0) / "metrics.jsonl"
    row = {"arm": "sgd", "step": 15, "train_loss": 1.5, "seconds": 1.5}
    with file.open("a") as lines:
        lines.write(json.dumps(row | {"seconds_curvature": 0.6}) + "\n")
    axes, _ = tuned_section.race_figure(*read(tmp_path)).axes
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [0, 10, 15, 20, 30, 40]
    there = 4 * (0.5 / 4) ** np.array([0.25, 0.5])  # the other seed's neighbours
    assert line.get_ydata()[2] == pytest.approx((1.5 + there.mean()) / 2)
