"""Reports of studies: of one that has just begun, of real runs, and their figures."""

import json
import re

import numpy as np
import pytest
from tiny_runs import tiny
from written_studies import LOSSES, SCALES, write_axis, write_cell

from bulk_sgd.lab.report import scale_figures, study, study_figures, study_report
from bulk_sgd.lab.report.page import text as page_text
from bulk_sgd.lab.sweep import grid, sweep


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


def test_bars_on_a_log_axis_stay_above_zero(tmp_path, monkeypatch):
    write_axis(
        tmp_path,
        grid.product(grid.values("rank", (1, 2)), grid.values("seed", range(3))),
    )
    for index, loss in enumerate([0.04, 0.04, 4e10] * 2):
        monkeypatch.setitem(LOSSES, "sgd", [1.0, 0.8, 0.6, 0.5, loss])
        write_cell(tmp_path, index, arms=("sgd",))
    (axis,) = study.read_study(tmp_path)
    panel = study_figures.setting_figure(axis).axes[0]
    assert panel.get_yscale() == "log"
    (bar, _) = panel.collections[0].get_segments()
    mean, factor = 400, 1e12 ** (1 / 3**0.5)  # of logs 0, 0 and log(1e12)
    np.testing.assert_allclose(bar[:, 1], [mean / factor, mean * factor], rtol=1e-3)


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
    dominant, bulk, arms = scale_figures.plane_scales(axis)
    assert (dominant, bulk) == ([0, 0.5, 2], [1, 2])
    assert len(arms) == 6
    assert arms[0, 1] == "bulk_sgd"
    assert set(study_figures.figures_of(axis)) == {"plane", "energies"}
    write_axis(tmp_path / "b", [{"seed": 0}])
    write_cell(tmp_path / "b", 0, arms=before)
    (axis,) = study.read_study(tmp_path / "b")
    assert scale_figures.path_points(axis)["bulk"] == [
        (0.0, "bulk_sgd"),
        (0.5, "bulk_path(0.5)"),
        (1.0, "sgd"),
    ]
    assert "families" in study_figures.figures_of(axis)
