"""Studies: outcomes and claims from rows written by hand."""

import math

import numpy as np
import pytest
from written_runs import edit_rows
from written_studies import LOSSES, write_axis, write_cell

from bulk_sgd.lab.report import claims, study
from bulk_sgd.lab.report.study_panels import field_label
from bulk_sgd.lab.report.verdicts import judge
from bulk_sgd.lab.sweep import grid, sweep


@pytest.fixture
def axis(tmp_path):
    write_axis(tmp_path / "seeds", [{"seed": 0}, {"seed": 1}])
    write_cell(tmp_path / "seeds", 0, bulk_sgd=0.05)
    write_cell(tmp_path / "seeds", 1, sharpness=6.0, bulk_sgd=0.2)
    (axis,) = study.read_study(tmp_path)
    return axis


def test_outcomes_by_hand(axis):
    bulk = axis.cells[0].outcome("bulk_sgd")
    assert bulk["loss_ratio"] == pytest.approx(0.2)
    assert bulk["progress"] == pytest.approx(0.8 / 0.6)
    # 90 % of SGD's decrease is at 0.46, which SGD passes at step 44, Bulk-SGD at 32.
    assert bulk["speed_up"] == pytest.approx(34 / 22)
    assert bulk["matvec_speed_up"] == pytest.approx(68 / (2 * 44))
    assert bulk["gradient_energy"] == pytest.approx(0.64)
    assert bulk["sharpness_ratio"] == pytest.approx(1.2)
    assert bulk["stable_ratio"] == pytest.approx(0.5)
    assert axis.cells[0].outcome("sgd")["speed_up"] == 1
    assert axis.cells[0].outcome("dom_sgd")["speed_up"] == 0
    assert axis.spread("base", "bulk_sgd", "stable_ratio") == study.Spread(
        1.25, pytest.approx(np.std([0.5, 2.0], ddof=1)), 2
    )


def test_matvecs_do_not_compare_where_sgd_takes_none(tmp_path):
    write_axis(tmp_path, [{"seed": 0}])
    write_cell(tmp_path, 0)
    free = lambda row: row | ({"matvecs": 0} if row["arm"] == "sgd" else {})
    edit_rows(sweep.cell_folder(tmp_path, 0), free)
    (axis,) = study.read_study(tmp_path)
    assert math.isnan(axis.cells[0].outcome("bulk_sgd")["matvec_speed_up"])
    assert axis.cells[0].outcome("dom_sgd")["matvec_speed_up"] == 0  # never there


def test_nothing_is_said_of_arms_that_have_not_ended(tmp_path):
    write_axis(tmp_path, [{"seed": 0}])
    write_cell(tmp_path, 0, statuses={"bulk_sgd": "running", "dom_sgd": "diverged"})
    (axis,) = study.read_study(tmp_path)
    cell = axis.cells[0]
    assert all(math.isnan(value) for value in cell.outcome("bulk_sgd").values())
    assert cell.outcome("dom_sgd")["diverged"] == 1
    known = {k: v for k, v in cell.outcome("dom_sgd").items() if math.isfinite(v)}
    rates = {"stable_rate", "stable_ratio"}
    assert known.keys() - rates == {"diverged", "speed_up", "matvec_speed_up"}
    assert known["speed_up"] == 0
    write_axis(tmp_path / "b", [{"seed": 0}])
    write_cell(tmp_path / "b", 0, statuses={"sgd": "running"})
    (axis,) = study.read_study(tmp_path / "b")
    assert math.isnan(axis.cells[0].outcome("bulk_sgd")["progress"])
    assert axis.cells[0].outcome("bulk_sgd")["loss_ratio"] == pytest.approx(0.2)


def test_progress_and_speed_need_a_decrease_of_sgd(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "sgd", [1.0, 1.1, 1.2, 1.1, 1.05])
    write_axis(tmp_path, [{"seed": 0}])
    write_cell(tmp_path, 0)
    (axis,) = study.read_study(tmp_path)
    bulk = axis.cells[0].outcome("bulk_sgd")
    assert math.isnan(bulk["progress"])
    assert math.isnan(bulk["speed_up"])
    assert bulk["loss_ratio"] == pytest.approx(0.2)


def verdicts(axes):
    return {claim.text: claim.verdict for claim in claims.claims(axes)}


def test_claims_follow_the_numbers(axis, tmp_path):
    found = verdicts([axis])
    assert found["Dom-SGD stalls"] == "holds"
    assert found["Bulk-SGD matches SGD"] == "holds"
    assert found["Gradients align with the dominant subspace"] == "holds"
    sharper = "They may cost stability: Bulk-SGD ends in sharper places"
    assert found[sharper] == "holds"
    by_rate = "They may cost stability, by learning rate: (0, 1)"
    assert found[by_rate] == "undecided"  # 0.5 and 2.0 times that of SGD
    assert found["The functional Hessian lies mostly in the bulk: F"] == "not measured"
    # Other numbers, other verdicts.
    write_axis(tmp_path / "other", [{"seed": 0}, {"seed": 1}], "Seeds")
    for index in (0, 1):
        write_cell(tmp_path / "other", index, bulk_sgd=0.05)
        file = sweep.cell_folder(tmp_path / "other", index) / "metrics.jsonl"
        worse = file.read_text().replace(
            '"alignment_gradient": 0.8', '"alignment_gradient": 0.3'
        )
        worse = worse.replace('"train_loss": 0.97', '"train_loss": 0.5')
        file.write_text(worse.replace('"train_loss": 0.2,', '"train_loss": 0.9,'))
    found = verdicts(study.read_study(tmp_path / "other"))
    assert found["Dom-SGD stalls"] == "does not hold"
    assert found["Bulk-SGD matches SGD"] == "does not hold"
    assert found["Gradients align with the dominant subspace"] == "does not hold"
    assert found[by_rate] == "holds"


def test_what_governs_stability_and_paths(tmp_path):
    cells = grid.product(
        grid.values("subspace.rank", (1, 5)), grid.values("seed", (0, 1))
    )
    write_axis(tmp_path / "rank", cells, "Rank")
    for index, rate in enumerate((0.1, 0.1, 0.3, 0.2)):
        write_cell(tmp_path / "rank", index, bulk_sgd=rate)
    write_axis(tmp_path / "interpolation", [{"seed": 0}], "Paths")
    write_cell(tmp_path / "interpolation", 0, bulk_sgd=0.05)
    axes = study.read_study(tmp_path)
    rank = next(axis for axis in axes if axis.name == "rank")
    assert rank.values == [1, 5]
    assert list(rank.groups) == ["1", "5"]
    (row,) = [c for c in claims.claims(axes) if "Governs" in c.text]
    # 3 and 2 times, of which the geometric mean counts.
    assert (row.measured.mean, row.measured.count) == (pytest.approx(6**0.5), 2)
    assert row.source == "rank: cells 0–3"
    assert row.text.endswith("SGD: rank k (largest at 5, smallest at 1)")
    speed, sharp, stable = (
        c for c in claims.claims(axes) if c.text.startswith("Interpolation")
    )
    # Progress over α = 0, 0.5, 1 falls: 0.8, 0.7, 0.6 of the loss at the fork.
    assert speed.measured.mean == pytest.approx(-1)
    # Sharpness over α: 12, 16, 4.
    assert sharp.measured.mean == pytest.approx(-0.5)
    # Stable rates over α: 0.05, 0.1, 0.1, of which the last two share a rank.
    assert stable.measured.mean == pytest.approx(0.75**0.5)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0], "undecided"),  # one seed has no error
        ([2.0, 2.2, math.nan], "undecided"),  # who knows what the third one does
        ([2.0, 2.2], "holds"),
        ([1.0, 1.2], "does not hold"),
        ([1.2, 2.2], "undecided"),  # 1.7, with a standard error of 0.5
        ([1.0, 1.4], "undecided"),  # 1.2, with a standard error of 0.2
        ([math.nan], "not measured"),
    ],
)
def test_verdicts_within_two_standard_errors_are_open(values, verdict):
    assert judge("", "x", (">", 1.5), values, "").verdict == verdict
    mirrored = judge("", "Bulk-SGD", ("<", -1.5), [-v for v in values], "")
    assert mirrored.verdict == verdict
    assert mirrored.criterion == "Bulk-SGD < −1.5"


def test_ratios_are_judged_by_their_logs():
    # 4 and ¼ average to 2.1, and to 1 on a log scale.
    row = judge("", "x", (">", 1.5), [4, 0.25], "", ratio=True)
    assert row.measured.mean == pytest.approx(1)
    values = [1.7, 1.8, 1.9]
    assert judge("", "x", (">", 1.5), values, "", ratio=True).verdict == "holds"
    mirrored = [1 / v for v in values]
    row = judge("", "x", ("<", 1 / 1.5), mirrored, "", ratio=True)
    assert row.verdict == "holds"


def test_a_cost_is_too_high_once_several_seeds_never_get_there():
    for count, verdict in ((1, "undecided"), (2, "does not hold")):
        row = judge("", "steps", ("<", 1), [math.inf] * count, "", ratio=True)
        assert (row.verdict, row.measured.mean) == (verdict, math.inf)


def test_noise_between_seeds_governs_nothing(tmp_path):
    cells = grid.product(
        grid.values("subspace.rank", (1, 5)), grid.values("seed", (0, 1))
    )
    write_axis(tmp_path, cells, "Rank")
    # Each seed by itself has a factor of four; they disagree in its direction.
    for index, rate in enumerate((0.1, 0.4, 0.45, 0.1)):
        write_cell(tmp_path, index, bulk_sgd=rate)
    axes = study.read_study(tmp_path)
    (row,) = [c for c in claims.claims(axes) if "Governs" in c.text]
    # What is shown is what is judged, between the extremes of the other seed.
    assert row.measured.mean == pytest.approx(18**-0.5)
    assert row.text.endswith("(largest at 5, smallest at 1)")
    assert row.verdict == "does not hold"


def test_what_diverged_or_is_unknown_is_not_left_out(tmp_path):
    write_axis(tmp_path, [{"seed": 0}, {"seed": 1}, {"seed": 2}])
    for index in range(3):
        lost = {"bulk_sgd": "diverged"} if index == 2 else None
        write_cell(tmp_path, index, statuses=lost, bulk_sgd=None if index else 0.05)
    axes = study.read_study(tmp_path)
    rows = {c.text: c for c in claims.claims(axes)}
    matches = rows["Bulk-SGD matches SGD"]
    assert (matches.measured.count, matches.seeds) == (2, 3)
    assert matches.verdict == "undecided"
    by_rate = rows["They may cost stability, by learning rate: (0, 1)"]
    assert (by_rate.measured.count, by_rate.verdict) == (1, "undecided")
    fast = rows["Bulk updates accelerate convergence: Bulk-SGD, (0, 1)"]
    assert fast.measured.count == 3
    assert fast.measured.mean == pytest.approx(2 / 3 * 34 / 22)


def test_settings_are_in_the_order_of_their_numbers(tmp_path):
    """New values of a sweep that grew come where they belong; words stay in order."""
    rates = grid.values("optimizer.learning_rate", (0.2, 0.3, 0.1))
    losses = grid.values("loss.name", ("mse", "cross_entropy"))
    write_axis(tmp_path, grid.product(rates, losses))
    (axis,) = study.read_study(tmp_path)
    assert [group.split(", loss ") for group in axis.groups] == [
        [f"learning rate {rate}", loss]
        for rate in (0.1, 0.2, 0.3)
        for loss in ("mse", "cross_entropy")
    ]


def test_settings_are_told_apart_by_all_their_fields(tmp_path):
    cells = [{"subspace.rank": 5}, {"subspace.refresh_every": 5}, {"seed": 1}]
    write_axis(tmp_path, cells)
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == ["rank 5", "refresh interval 5", "base"]
    assert axis.values is None
    write_axis(tmp_path, [{"seed": 0}, {"subspace.rank": 5}])
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == ["base", "5"]
    assert axis.values is None
    # Of several settings none is the base that the paper's claims are about.
    found = verdicts([axis])
    assert found["Dom-SGD stalls"] == "not measured"


def test_labels_stand_for_settings_and_long_values_are_shortened(tmp_path):
    path, widths = "/data/of/mine/images.npz", [100, 50, 50, 50, 20]
    cells = [
        {"label": "mine", "data.name": path, "model.hidden": widths, "seed": 0},
        {"label": "ranks", "subspace.rank": 1},
        {"label": "ranks", "subspace.rank": 1000},
        {"data.name": path, "model.hidden": widths},
        {"data.name": "my_pkg.data:make", "model.hidden": [8]},
    ]
    write_axis(tmp_path, cells)
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == [
        "mine",
        "ranks, 1",
        "ranks, 1,000",
        "data set images.npz, hidden widths 100×50×…×20",
        "data set make, hidden widths 8",
    ]
    assert field_label(axis) == ""
    # Two that would be shortened to the same.
    names = [{"data.name": f"{folder}/x.npz"} for folder in "ab"]
    write_axis(tmp_path, names)
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == ["a/x.npz", "b/x.npz"]
    assert field_label(axis) == "data set"
    write_axis(tmp_path, [{"switch.freeze": value} for value in (False, True)])
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == ["freeze False", "freeze True"]
    assert field_label(axis) == ""


def test_no_study_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No sweep\.json in"):
        study.read_study(tmp_path)
