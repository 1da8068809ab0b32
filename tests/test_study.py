"""Studies: outcomes and claims from rows written by hand, and a page from real runs."""

import json
import math
import re

import numpy as np
import pytest
from test_train import tiny

from bulk_sgd import grid, sweep
from bulk_sgd.report import claims, study, study_figures, study_report
from bulk_sgd.report.page import text as page_text

SCALES = {
    "sgd": (1.0, 1.0),
    "dom_sgd": (1.0, 0.0),
    "bulk_sgd": (0.0, 1.0),
    "bulk_path(0.5)": (0.5, 1.0),
    "scales(0.5,2)": (0.5, 2.0),
}
# Losses at steps 10, 20, …, 50; the fork is at step 10.
LOSSES = {
    "sgd": [1.0, 0.8, 0.6, 0.5, 0.4],
    "dom_sgd": [1.0, 1.0, 1.0, 1.0, 0.97],
    "bulk_sgd": [1.0, 0.7, 0.5, 0.3, 0.2],
    "bulk_path(0.5)": [1.0, 0.8, 0.5, 0.4, 0.3],
    "scales(0.5,2)": [1.0, 0.5, 0.4, 0.3, 0.1],
}


def write_cell(workdir, index, arms=SCALES, sharpness=4.0, statuses=None, **rates):
    folder = sweep.cell_folder(workdir, index)
    folder.mkdir(parents=True)
    rows = [{"arm": "prefix", "step": 10, "train_loss": 1.0}]
    for i, arm in enumerate(arms):
        for j, loss in enumerate(LOSSES[arm]):
            top = sharpness * (1 + i)
            rows.append(
                {
                    "arm": arm,
                    "step": 10 * (j + 1),
                    "train_loss": loss,
                    "eigenvalues": [top, 1.0],
                    "sharpness_ratio": 0.1 * top,
                    "alignment_gradient": 0.8,
                    "matvecs": 20 * j * (2 if arm == "bulk_sgd" else 1),
                    "hessian/frobenius_share": 0.9,
                    "hessian/trace_share": 0.4,
                }
            )
    info = {
        "status": "complete",
        "learning_rate": 0.1,
        "rank": 2,
        "switch": {"step": 10, "reason": "step 10"},
        "arms": {
            arm: {
                "label": arm,
                "formula": "",
                "dominant_scale": SCALES[arm][0],
                "bulk_scale": SCALES[arm][1],
                "status": (statuses or {}).get(arm, "complete"),
                "stable_rate": rates.get(arm, 0.1),
                "unstable_rate": rates.get(arm, 0.1),
            }
            for arm in arms
        },
    }
    (folder / "run.json").write_text(json.dumps(info))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)


def write_axis(workdir, cells, name="Axis"):
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "about": "Asks?\n\nMore.", "cells": cells}
    (workdir / sweep.FILE).write_text(json.dumps(content))


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
    assert row.text.endswith("SGD: rank k")
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
        ([1.0, 1.8], "undecided"),
        ([math.nan], "not measured"),
    ],
)
def test_verdicts_within_two_standard_errors_are_open(values, verdict):
    assert claims._claim("", "x", (">", 1.5), values, "").verdict == verdict
    mirrored = claims._claim("", "Bulk-SGD", ("<", -1.5), [-v for v in values], "")
    assert mirrored.verdict == verdict
    assert mirrored.criterion == "Bulk-SGD < −1.5"


def test_ratios_are_judged_by_their_logs():
    # 4 and ¼ average to 2.1, and to 1 on a log scale.
    row = claims._claim("", "x", (">", 1.5), [4, 0.25], "", ratio=True)
    assert row.measured.mean == pytest.approx(1)
    values = [1.7, 1.8, 1.9]
    assert claims._claim("", "x", (">", 1.5), values, "", ratio=True).verdict == "holds"
    mirrored = [1 / v for v in values]
    row = claims._claim("", "x", ("<", 1 / 1.5), mirrored, "", ratio=True)
    assert row.verdict == "holds"


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
    assert row.measured.mean == pytest.approx((1 / 4.5 / 4) ** 0.5)
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


def test_settings_are_told_apart_by_all_their_fields(tmp_path):
    cells = [{"subspace.rank": 5}, {"subspace.refresh_every": 5}, {"seed": 1}]
    write_axis(tmp_path, cells)
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == ["rank 5", "refresh every 5", "base"]
    assert axis.values is None
    write_axis(tmp_path, [{"seed": 0}, {"subspace.rank": 5}])
    (axis,) = study.read_study(tmp_path)
    assert list(axis.groups) == ["base", "5"]
    assert axis.values is None
    # Of several settings none is the base that the paper's claims are about.
    found = verdicts([axis])
    assert found["Dom-SGD stalls"] == "not measured"


@pytest.mark.parametrize("kind", ["settings", "plane", "families", "training"])
def test_report_of_a_study_that_has_just_begun(tmp_path, monkeypatch, kind):
    points = {f"scales({a},{b})": (a, b) for a in (0.5, 2.0, 3.0) for b in (0.5, 2.0)}
    for name in points:
        monkeypatch.setitem(SCALES, name, points[name])
        monkeypatch.setitem(LOSSES, name, LOSSES["bulk_sgd"])
    arms = {
        "plane": ("sgd", *points),
        "families": ("sgd", "bulk_sgd", "bulk_path(0.5)"),
    }.get(kind, ("sgd", "bulk_sgd"))
    cells = [{"seed": 0}, {"seed": 1}]
    if kind == "settings":
        cells = grid.values("subspace.rank", (1, 5))
    write_axis(tmp_path, cells)
    assert study_report.write_report(tmp_path).exists()  # nothing has begun
    write_cell(tmp_path, 0, arms, statuses=dict.fromkeys(arms, "running"))
    assert study_report.write_report(tmp_path).exists()
    write_cell(tmp_path, 1, arms)
    study_report.write_report(tmp_path)
    images = {file.stem for file in (tmp_path / "report").glob("*.png")}
    assert f"{tmp_path.name}-{kind}" in images


def test_no_study_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No sweep\.json in"):
        study.read_study(tmp_path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two real axes, one with energies and stable rates, one with a failed cell."""
    root = tmp_path_factory.mktemp("study")
    base = tiny(
        measures__every=5,
        measures__num_probes=4,
        stability__rounds=2,
        stability__num_steps=5,
        arms=("sgd", "dom_sgd", "bulk_sgd"),
    )
    cells = grid.values("seed", (0, 1))
    sweep.run_sweep(base, cells, root / "seeds", about="Asks?", say=lambda _: None)
    cells = [{"batch_size": size} for size in (5, 10, 20)]
    plain = tiny(arms=("sgd", "bulk_sgd"))
    train = sweep.train_together

    def fail(experiments, *rest, **options):
        if experiments[0].config.batch_size == 20:
            raise RuntimeError("out of memory")
        return train(experiments, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train_together", fail)
        sweep.run_sweep(plain, cells, root / "batch", about="Asks?", say=lambda _: None)
    return root


def test_page_of_real_runs(swept):
    path = study_report.write_report(swept)
    text = path.read_text()
    images = {file.name for file in path.parent.glob("*.png")}
    assert images == {"seeds-training.png", "seeds-energies.png", "batch-settings.png"}
    for image in images:
        assert (path.parent / image).with_suffix(".pdf").stat().st_size > 1_000
    assert text.count("data:image/png;base64,") == 3
    assert "batch: cell 2" in text
    assert "is failed" in text
    tables = json.loads((path.parent / "tables.json").read_text())
    outcome = tables["axes"]["seeds"][0]["arms"]["bulk_sgd"]
    run = study.read_study(swept)[1].cells[0].run
    ratio = run.summary("bulk_sgd").train_loss / run.switch_loss
    assert outcome["loss_ratio"] == pytest.approx(ratio)
    assert outcome["stable_rate"] > 0
    markdown = (path.parent / "claims.md").read_text()
    assert len(re.findall(r"^\|", markdown, re.M)) == 2 + len(tables["claims"])
    # Sum rule and shares, from the rows.
    assert "H = G + F" in text
    shares = run.series("sgd", "hessian/frobenius_share")
    assert 0 < shares[-1] <= 1
    assert "uᵢᵀ M uᵢ" in text
    assert page_text(run.info["command"]) in text


def test_report_of_a_single_sweep_and_again_the_same(swept):
    assert study.is_study(swept / "batch")
    assert not study.is_study(sweep.cell_folder(swept / "seeds", 0))
    first = study_report.write_report(swept / "batch")
    before = {f.name: f.read_bytes() for f in first.parent.iterdir()}
    study_report.write_report(swept / "batch")
    assert {f.name: f.read_bytes() for f in first.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (({"rank": 1}, {"rank": 2}), ["sgd, 1", "sgd, 2"]),
        # Which field a lone number sets must be told.
        (({"rank": 1}, {"size": 2}), ["name sgd, rank 1", "name sgd, size 2"]),
    ],
)
def test_ticks_tell_settings_apart(tmp_path, fields, expected):
    cells = [{"name": name} | more for name in ("sgd", "sam") for more in fields]
    write_axis(tmp_path, cells)
    for i in range(len(cells)):
        write_cell(tmp_path, i)
    (axis,) = study.read_study(tmp_path)
    (panel, *_) = study_figures.setting_figure(axis).axes
    ticks = [tick.get_text() for tick in panel.get_xticklabels()]
    assert ticks[:2] == expected


def test_plane_and_family_figures(tmp_path, monkeypatch):
    write_axis(tmp_path, [{"seed": 0}])
    before = list(SCALES)
    points = {
        f"scales({a},{b})": (float(a), float(b)) for a in (0, 0.5, 2) for b in (1, 2)
    }
    for name in points:
        monkeypatch.setitem(SCALES, name, points[name])
        monkeypatch.setitem(LOSSES, name, LOSSES["bulk_sgd"])
    del points["scales(0,1)"]  # which is Bulk-SGD
    write_cell(tmp_path, 0, arms=("sgd", "bulk_sgd", *points))
    (axis,) = study.read_study(tmp_path)
    dominant, bulk, arms = study_figures.plane_scales(axis)
    assert (dominant, bulk) == ([0, 0.5, 2], [1, 2])
    assert len(arms) == 6
    assert arms[0, 1] == "bulk_sgd"
    assert set(study_figures.figures_of(axis)) == {"plane", "energies"}
    write_axis(tmp_path / "b", [{"seed": 0}])
    write_cell(tmp_path / "b", 0, arms=before)
    (axis,) = study.read_study(tmp_path / "b")
    assert study_figures.path_points(axis)["bulk"] == [
        (0.0, "bulk_sgd"),
        (0.5, "bulk_path(0.5)"),
        (1.0, "sgd"),
    ]
    assert "families" in study_figures.figures_of(axis)
