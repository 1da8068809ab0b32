"""Reports of tuned sweeps: rows at their best values, and what they cost."""

import dataclasses
import json
import math

import pytest
from written_studies import write_axis, write_cell, write_straight, write_tuned

from bulk_sgd.lab.report import payoff, study, study_figures, tuned, tuned_section
from bulk_sgd.lab.report.write import write_report
from bulk_sgd.lab.sweep import grid, tuning, workdir

TUNE = {"field": "optimizer.learning_rate", "reference": "plain"}
# Last losses over the rate, one per seed; a NaN diverged.
SETTINGS = {
    "fast": {0.1: (0.1, 0.2), 0.2: (0.02, 0.02), 0.4: (math.nan, 0.01)},
    "plain": {0.1: (0.5, 0.6), 0.2: (0.25, 0.25), 0.4: (0.5, 0.5)},
    "slow": {0.1: (2.0, 2.0), 0.2: (1.0, 1.0)},
}


@pytest.fixture
def axis(tmp_path):
    write_tuned(tmp_path / "rates", SETTINGS, TUNE)
    (axis,) = study.read_study(tmp_path)
    return axis


def test_rows_take_their_best_value(axis):
    rows = {row.name: row for row in tuned.rows(axis)}
    assert {name: row.best for name, row in rows.items()} == dict.fromkeys(
        SETTINGS, 0.2
    )
    assert {name: row.at_edge for name, row in rows.items()} == {
        "fast": False,
        "plain": False,
        "slow": True,
    }
    assert rows["fast"].losses[0.4] == [math.inf, pytest.approx(0.01)]
    reduced = tuned.winners(axis)
    assert list(reduced.groups) == ["fast", "plain", "slow"]
    assert [cell.index for cell in reduced.cells] == [2, 3, 8, 9, 14, 15]
    assert reduced.spread("fast", "sgd", "loss_ratio").mean == pytest.approx(0.02 / 4)


def test_a_value_competes_once_all_its_seeds_have_ended(tmp_path):
    settings = {"plain": {0.1: (0.5, 0.6), 0.2: (0.1, 3.0), 0.4: (1.0, 1.0)}}
    write_tuned(tmp_path, settings, TUNE)
    (workdir.cell_folder(tmp_path, 3) / "metrics.jsonl").unlink()  # 0.2, the worse one
    running = workdir.cell_folder(tmp_path, 4) / "run.json"
    running.write_text(running.read_text().replace("complete", "running"))
    (row,) = tuned.rows(*study.read_study(tmp_path))
    assert (row.best, [*row.losses], len(row.cells)) == (0.1, [0.1], 2)


def test_a_value_competes_once_it_has_the_steps_of_its_sweep(tmp_path):
    write_tuned(tmp_path, {"plain": {0.1: (0.5,), 0.2: (0.1,)}}, TUNE)
    base = {"num_steps": 80, "optimizer": {"learning_rate": 0.0}, "seed": 0}
    sweep = tmp_path / workdir.FILE
    content = json.loads(sweep.read_text()) | {"config": base}
    sweep.write_text(json.dumps(content))
    for index, steps in enumerate((80, 40)):  # the second one has not grown yet
        path = workdir.cell_folder(tmp_path, index) / "run.json"
        config = grid.override(base, content["cells"][index]) | {"num_steps": steps}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
    (axis,) = study.read_study(tmp_path)
    (row,) = tuned.rows(axis)
    assert (row.best, [*row.losses], len(row.cells)) == (0.1, [0.1], 1)
    assert [cell.status for cell in axis.cells] == ["complete", "interrupted"]
    outcomes = [cell.outcome("sgd")["loss_ratio"] for cell in axis.cells]
    assert outcomes == [pytest.approx(0.5 / 4), pytest.approx(math.nan, nan_ok=True)]


def test_the_reference_is_sgd_if_none_is_named(tmp_path):
    cells = grid.product(
        grid.values("batch_size", (5, 10)), grid.values(TUNE["field"], (0.1, 0.2))
    )
    for index, arm in enumerate(("bulk_sgd", "bulk_sgd", "sgd", "sgd")):
        write_straight(workdir.cell_folder(tmp_path, index), 0.5, arm)
    write_axis(tmp_path, cells, tune={"field": TUNE["field"]})
    (axis,) = study.read_study(tmp_path)
    assert tuned.reference(axis, tuned.rows(axis)).arm == "sgd"


def test_costs_are_those_to_the_end_of_the_reference(axis):
    rows = tuned.rows(axis)
    plain = tuned.reference(axis, rows)
    assert plain.name == "plain"
    fast, own, slow = (tuned.costs(axis, row, plain) for row in rows)
    assert [cost["steps"] for cost in own] == [1, 1]
    # The loss 0.25 lies between the rows at 20 and 30 steps, linear between them.
    left, right = (4 * (0.02 / 4) ** (step / 40) for step in (20, 30))
    steps = 20 + 10 * (left - 0.25) / (left - right)
    assert fast[0]["steps"] == pytest.approx(steps / 40)
    # Of SGD what measures does not count: no matvecs, 0.06 s per step.
    assert math.isnan(fast[0]["matvecs"])
    assert fast[0]["own_matvecs"] == 0
    assert fast[0]["seconds"] == pytest.approx(steps / 40)
    assert fast[0]["test_loss"] == pytest.approx(0.5)
    assert slow[0]["steps"] == math.inf


def test_costs_go_by_the_first_crossing_and_test_shares_by_the_last_loss(tmp_path):
    """Here the reference is at its last loss after 20 of 40 steps, and overfits."""
    settings = {"plain": {0.1: (0.5,)}, "other": {0.1: (0.5,)}}
    write_tuned(tmp_path, settings, TUNE)
    for index, step, changed in (
        (0, 20, {"train_loss": 0.5}),
        (0, 40, {"test_loss": 4.0}),
    ):
        file = workdir.cell_folder(tmp_path, index) / "metrics.jsonl"
        rows = map(json.loads, file.read_text().splitlines())
        rows = [row | changed if row["step"] == step else row for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (axis,) = study.read_study(tmp_path)
    plain, other = tuned.rows(axis)
    (own,), (cost,) = (tuned.costs(axis, row, plain) for row in (plain, other))
    assert (own["steps"], own["seconds"]) == (1, 1)
    assert cost["steps"] == cost["seconds"] == pytest.approx(40 / 20)
    assert cost["test_share"] == pytest.approx(1 / 4)
    middle = 2 * math.sqrt(4 * 0.5)  # the test loss after 20 steps
    assert own["test_share"] == pytest.approx(middle / 4)


@pytest.mark.parametrize(
    "other", [{"loss_label": "cross-entropy"}, {"config": {"data": {"name": "x"}}}]
)
def test_rows_of_another_loss_or_other_data_are_not_timed(axis, tmp_path, other):
    for index in range(6):  # those of "fast"
        file = workdir.cell_folder(tmp_path / "rates", index) / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | other))
    (axis,) = study.read_study(tmp_path)
    rows = tuned.rows(axis)
    fast, _, slow = (tuned.costs(axis, row, rows[1]) for row in rows)
    assert fast[0].pop("end") == pytest.approx(0.02)
    assert all(map(math.isnan, fast[0].values()))
    assert slow[0]["steps"] == math.inf
    page = write_report(tmp_path / "rates").read_text()
    assert "<td>another loss or other data</td>" in page


def test_a_mean_of_rows_is_timed_by_means_of_rows(axis):
    few = dataclasses.replace(axis, tune=tuning.Tuning(**TUNE, rows=3))
    rows = tuned.rows(few)
    fast, own, _ = (tuned.costs(few, row, rows[1]) for row in rows)
    assert [cost["steps"] for cost in own] == [1, 1]
    path = lambda end: [4 * (end / 4) ** (step / 40) for step in range(0, 50, 10)]
    means = [sum(path(0.02)[i - 2 : i + 1]) / 3 for i in (2, 3)]
    target = sum(path(0.25)[2:]) / 3
    steps = 20 + 10 * (means[0] - target) / (means[0] - means[1])
    assert fast[0]["steps"] == pytest.approx(steps / 40)


def test_prefix_counts_and_an_arm_pays_for_its_subspace(axis, tmp_path):
    folder = tmp_path / "one"
    write_straight(folder, 0.25, "bulk_sgd")
    record = json.loads((folder / "run.json").read_text())
    record["switch"]["step"] = 10
    (folder / "run.json").write_text(json.dumps(record))
    prefix = {"arm": "prefix", "train_loss": 4.0, "test_loss": 4.0, "matvecs": 9}
    rows = [
        prefix | {"step": s, "seconds": s, "seconds_curvature": s / 2} for s in (0, 8)
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    cell = study.Cell(0, {}, "complete", study.read_run(folder))
    curve = tuned.Curve.of(cell, "bulk_sgd")
    assert curve.steps.tolist() == [0, 8, 0, 10, 20, 30, 40]
    assert curve.seconds.tolist() == pytest.approx([0, 4, 4, 5, 6, 7, 8])
    assert curve.matvecs.tolist() == [0, 0, 0, 20, 40, 60, 80]


def test_claims_say_which_rows_save_steps_and_seconds(axis, tmp_path):
    """Here "fast" takes thrice the seconds of a step."""
    for index in range(6):
        file = workdir.cell_folder(tmp_path / "rates", index) / "metrics.jsonl"
        rows = map(json.loads, file.read_text().splitlines())
        times = {"seconds", "seconds_curvature"}
        rows = [{k: 3 * v if k in times else v for k, v in x.items()} for x in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (axis,) = study.read_study(tmp_path)
    fast, plain, _ = tuned.rows(axis)
    (share, again) = (cost["steps"] for cost in tuned.costs(axis, fast, plain))
    found = payoff.claims(payoff.sweeps([axis]))
    edge = ", at the edge of its grid"
    assert [(claim.text, claim.verdict) for claim in found] == [
        ("Saves steps against plain: fast (rates)", "holds"),
        (f"Saves steps against plain: slow (rates{edge})", "does not hold"),
        ("Saves seconds against plain: fast (rates)", "does not hold"),
        (f"Saves seconds against plain: slow (rates{edge})", "does not hold"),
    ]
    assert share == pytest.approx(again)
    means = [claim.measured.mean for claim in found]
    assert means == pytest.approx([share, math.inf, 3 * share, math.inf])
    assert found[0].source == "rates: cells 2, 3, 8, 9"
    assert payoff.sweeps([dataclasses.replace(axis, tune=None)]) == []


def test_the_arm_of_the_reference_is_no_rival_in_another_setting(tmp_path):
    cells = grid.product(
        grid.values("batch_size", (5, 10)), grid.values(TUNE["field"], (0.1, 0.2))
    )
    for index in range(4):
        write_cell(tmp_path, index, ("sgd", "bulk_sgd"))
    write_axis(tmp_path, cells, tune={"field": TUNE["field"]})
    found = payoff.sweeps(study.read_study(tmp_path))
    texts = [claim.text for claim in payoff.claims(found)]
    assert len(texts) == 4  # steps and seconds, of Bulk-SGD at both batch sizes
    assert all("against the plain optimizer: " in text for text in texts)
    assert all("bulk_sgd" in text for text in texts)


def test_report_of_a_tuned_sweep(axis, tmp_path):
    page = write_report(tmp_path / "rates")
    text = page.read_text()
    for name in ("race", "tuning", "settings"):
        assert page.with_name(f"rates-{name}.png").stat().st_size > 10_000
    assert "slow: the best learning rate, 0.2, is at the edge of its grid" in text
    assert "fast: the best" not in text
    assert "<td>never</td>" in text
    assert (
        "Each row has the learning rate that gives it the lowest training loss" in text
    )
    found = json.loads(page.with_name("tables.json").read_text())["tuned"]["rates"]
    assert [row["best"] for row in found] == [0.2] * 3
    assert found[1]["costs"][0]["steps"] == 1
    claims = page.with_name("claims.md").read_text()
    assert "| Saves steps against plain: fast (rates) |" in claims
    assert "| never | does not hold |" in claims
    assert "Infinity" not in page.with_name("tables.json").read_text()
    assert "Dom-SGD" not in claims  # no claim of the paper is decided


def test_rows_have_their_colours_in_all_figures(axis):
    race = tuned_section.race_figure(axis, tuned.rows(axis))
    curves = study_figures.curves_figure(tuned.winners(axis))
    found = []
    for figure in (race, curves):
        (legend,) = figure.legends
        texts, lines = legend.get_texts(), legend.get_lines()
        found.append({x.get_text(): y.get_color() for x, y in zip(texts, lines)})
    assert found[0] == found[1]
    assert len({*found[0].values()}) == 3
    drawn = [line.get_color() for line in curves.axes[0].lines]
    assert drawn == [*found[1].values()]


def test_median_and_range():
    assert tuned_section.middle([0.5, 1.0, math.inf]) == "1.00 (0.500\xa0–\xa0never)"
    assert tuned_section.middle([2.0, 2.0]) == "2.00"
    assert tuned_section.middle([math.nan]) == "–"
