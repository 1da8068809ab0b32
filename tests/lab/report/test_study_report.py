"""Reports of studies: of one that has just begun, of real runs, and their figures."""

import json
import re
import shutil

import numpy as np
import pytest
from written_studies import LOSSES, SCALES, write_axis, write_cell

from bulk_sgd.lab.report import (
    energies,
    saving,
    scale_figures,
    study,
    study_figures,
    study_report,
)
from bulk_sgd.lab.report.formatting import number
from bulk_sgd.lab.report.page import text as page_text
from bulk_sgd.lab.report.study_tables import plus_minus
from bulk_sgd.lab.report.style import new_figure
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
    page = study_report.write_report(tmp_path)
    assert "Cells: 2, 2 pending." in page.read_text()
    assert "No cell has begun." in page.read_text()
    image = page.with_name(f"{tmp_path.name}-{kind}.png")
    write_cell(tmp_path, 0, arms, statuses=dict.fromkeys(arms, "running"))
    study_report.write_report(tmp_path)
    assert image.exists() == (kind == "training")  # the others show how arms ended
    assert "0 of 0" in page.read_text()
    write_cell(tmp_path, 1, arms)
    study_report.write_report(tmp_path)
    assert image.exists()
    assert "0 of 1" in page.read_text()


@pytest.fixture(scope="module")
def studied(run, tmp_path_factory):
    """An axis of a real run, and one with a failed cell."""
    root = tmp_path_factory.mktemp("study")
    write_axis(root / "seeds", [{"seed": 0}])
    real = sweep.cell_folder(root / "seeds", 0)
    real.mkdir(parents=True)
    for file in ("run.json", "metrics.jsonl"):
        shutil.copy(run / file, real)
    write_axis(root / "batch", [{"batch_size": size} for size in (5, 10, 20)])
    for index in range(2):
        write_cell(root / "batch", index, energies=False)
    failed = sweep.cell_folder(root / "batch", 2)
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("out of memory")
    return root


@pytest.mark.slow
def test_page_of_a_real_run_and_a_failed_cell(studied):
    path = study_report.write_report(studied)
    text = path.read_text()
    images = {file.name for file in path.parent.glob("*.png")}
    names = "seeds-training", "seeds-energies", "batch-curves", "batch-settings"
    assert images == {f"{name}.png" for name in names}
    assert text.count("data:image/png;base64,") == 4
    assert "batch: cell 2 ({&quot;batch_size&quot;: 20}) is failed." in text
    assert "stand side by side" in text  # of the five arms at each batch size
    tables = json.loads((path.parent / "tables.json").read_text())
    outcome = tables["axes"]["seeds"][0]["arms"]["bulk_sgd"]
    run = study.read_study(studied)[1].cells[0].run
    ratio = run.summary("bulk_sgd").train_loss / run.fork_loss
    assert outcome["loss_ratio"] == pytest.approx(ratio)
    assert 0 < outcome["descent_ratio"] < 1
    assert tables["axes"]["batch"][0]["arms"]["bulk_sgd"]["stable_rate"] == 0.1
    markdown = (path.parent / "claims.md").read_text()
    assert len(re.findall(r"^\|", markdown, re.M)) == 2 + len(tables["claims"])
    # Sum rule, shares and forms, from the rows of the real run.
    assert "H = G + F" in text
    for operator in ("hessian", "gauss_newton", "functional_hessian"):
        share = run.series("sgd", f"{operator}/frobenius_share")[-1]
        assert f"<td>{number(share)}</td>" in text
        forms = run.rows["sgd"][-1][f"{operator}/rayleigh"]
        assert "".join(f"<td>{number(form)}</td>" for form in forms) in text
    assert page_text(run.info["command"]) in text


def test_report_of_a_single_sweep_and_again_the_same(studied):
    assert study.is_study(studied / "batch")
    assert not study.is_study(sweep.cell_folder(studied / "seeds", 0))
    first = study_report.write_report(studied / "batch")
    before = {f.name: f.read_bytes() for f in first.parent.iterdir()}
    study_report.write_report(studied / "batch")
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
    guarded = {f"accelerated({a},{b})": (a, b) for a, b in ((0.5, 2), (0, 1), (1, 1))}
    for name in points | guarded:
        monkeypatch.setitem(SCALES, name, (points | guarded)[name])
        monkeypatch.setitem(LOSSES, name, LOSSES["bulk_sgd"])
    del points["scales(0,1)"]  # which is Bulk-SGD
    write_cell(tmp_path, 0, arms=("sgd", "bulk_sgd", *points, *guarded))
    (axis,) = study.read_study(tmp_path)
    assert [axis.summaries[arm].method for arm in guarded] == [None] * 3
    assert len(scale_figures.path_points(axis)["bulk"]) == 3
    dominant, bulk, arms = scale_figures.plane_scales(axis)
    assert (dominant, bulk) == ([0, 0.5, 2], [1, 2])
    assert len(arms) == 6
    assert arms[0, 1] == "bulk_sgd"
    assert set(study_figures.figures_of(axis)) == {"plane", "energies"}
    figure = scale_figures.plane_figure(axis)
    figure.canvas.draw()
    bars = [axes for axes in figure.axes if axes.get_subplotspec() is None]
    ticks = [tick.get_text() for axes in bars for tick in axes.get_yticklabels()]
    assert len(bars) == 3
    assert {"0.2", "0.5", "0.1"} <= {*ticks}
    write_axis(tmp_path / "b", [{"seed": 0}])
    write_cell(tmp_path / "b", 0, arms=before)
    (axis,) = study.read_study(tmp_path / "b")
    assert scale_figures.path_points(axis)["bulk"] == [
        (0.0, "bulk_sgd"),
        (0.5, "bulk_path(0.5)"),
        (1.0, "sgd"),
    ]
    assert "families" in study_figures.figures_of(axis)


def test_energies_are_shown_where_they_were_measured(tmp_path):
    write_axis(tmp_path, grid.values("rank", (1, 5)))
    for index in range(2):
        write_cell(tmp_path, index, energies=index == 1)
    (axis,) = study.read_study(tmp_path)
    figure = energies.energy_figure(axis)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["rank 5", ""]
    assert "<td>1</td>" not in energies.energy_table(axis)


def test_curves_have_a_column_per_method_and_a_band_per_setting(tmp_path):
    cells = grid.product(grid.values("rank", (1, 5)), grid.values("seed", (0, 1)))
    write_axis(tmp_path, cells)
    for index in range(4):
        write_cell(tmp_path, index, arms=("sgd", "bulk_sgd"))
    (axis,) = study.read_study(tmp_path)
    figure = study_figures.curves_figure(axis)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "sgd",
        "bulk_sgd",
    ]
    first = figure.axes[0]
    assert len(first.lines) == len(first.collections) == 2
    np.testing.assert_allclose(first.lines[0].get_ydata(), LOSSES["sgd"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["rank 1", "rank 5"]
    # Two rows become two columns: a row for each method, and labels for each panel.
    saving.fit_column(figure)
    assert {axes.get_subplotspec().get_gridspec().ncols for axes in figure.axes} == {2}
    loss, other = figure.axes[1], figure.axes[3]
    assert [axes.get_title(loc="left") for axes in (loss, other)] == ["bulk_sgd"] * 2
    places = [axes.get_subplotspec() for axes in (loss, other)]
    assert [(x.rowspan.start, x.colspan.start) for x in places] == [(1, 0), (1, 1)]
    assert loss.get_ylabel() == "training loss"
    assert loss.get_xlabel() == other.get_xlabel() == "step"
    alone, _ = new_figure(2, 1, (10.4, 4))
    saving.fit_column(alone)
    assert [axes.get_subplotspec().rowspan.start for axes in alone.axes] == [0, 1]


@pytest.mark.parametrize("settings", [1, 2])
def test_own_measurements_have_panels_and_a_column(tmp_path, settings):
    seeds = grid.values("seed", (0, 1))
    ranks = grid.values("rank", (1, 5)[:settings])
    write_axis(tmp_path, grid.product(ranks, seeds))
    for index in range(2 * settings):
        write_cell(tmp_path, index, arms=("sgd", "bulk_sgd"), own=True)
    (axis,) = study.read_study(tmp_path)
    panels = study_figures.figures_of(axis)["own"].axes
    assert len(panels) == settings  # else the lines of both arms are in one panel
    assert panels[0].get_ylabel() == "moved"
    assert [len(axes.lines) for axes in panels] == [2] * settings
    for axes in panels:  # the mean of cells 0 and 1
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [1.5, 2.5, 3.5, 4.5])
    page = study_report.write_report(tmp_path)
    assert '<th scope="col">moved</th>' in page.read_text()
    assert "<td>4.50 ±\N{NO-BREAK SPACE}0.71</td>" in page.read_text()
    found = json.loads((page.parent / "tables.json").read_text())
    cells = found["axes"][tmp_path.name]
    assert [x["arms"]["sgd"]["own/moved"] for x in cells][:2] == [4, 5]


def test_figures_fit_a_column(tmp_path, monkeypatch):
    write_axis(tmp_path, grid.values("rank", (1, 5)))
    for index in range(2):
        write_cell(tmp_path, index)
    (axis,) = study.read_study(tmp_path)
    figure = study_figures.setting_figure(axis)
    before = figure.axes[0].yaxis.label.get_fontsize()
    saving.fit_column(figure)
    assert figure.get_figwidth() == 3.3
    assert figure.axes[0].yaxis.label.get_fontsize() == 0.75 * before >= 7
    tops = [axes.get_subplotspec().get_position(figure) for axes in figure.axes]
    assert [top.x0 for top in tops] == [tops[0].x0] * 3
    assert tops[0].y0 > tops[1].y1 > tops[1].y0 > tops[2].y1
    monkeypatch.setattr(saving, "BESIDE", {"pdf": "CreationDate", "svg": "Date"})
    saving.save(figure, tmp_path / "some-name")
    for end in (".png", ".pdf", ".svg", "-column.pdf"):
        assert (tmp_path / f"some-name{end}").stat().st_size > 1_000


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (1.371, 0.00897, "1.37 ± 0.01"),
        (-0.00375, 0.067, "−0.0037 ± 0.0670"),
        (12_345.6, 678.9, "12,346 ± 679"),
        (1e-7, 1e-9, "1.00e-7 ± 1.00e-9"),
    ],
)
def test_mean_and_deviation_end_at_the_same_decimal(mean, deviation, text):
    assert plus_minus(study.Spread(mean, deviation, 3)) == text


def test_only_fields_that_the_runs_use_and_share_describe_them():
    def config(optimizer, rank):
        return {
            "model": {"name": "transformer", "hidden": [200], "activation": "gelu"},
            "loss": {"name": "cross_entropy", "reduction": "sum"},
            "optimizer": {"name": optimizer, "momentum": 0.9, "projection": "update"},
            "data": {"name": "mnist5k", "num_train": 0},
            "batch_size": 50,
            "subspace": {"rank": rank, "solver": "lanczos"},
        }

    used = dict(study_report.shared_fields([config("adam", 3), config("adam", 5)]))
    assert used == {
        "data.name": "mnist5k",
        "model.name": "transformer",
        "model.activation": "gelu",
        "loss.name": "cross_entropy",
        "optimizer.name": "adam",
        "optimizer.projection": "update",
        "batch_size": 50,
        "subspace.solver": "lanczos",
    }
    plain = config("sgd", 3)
    assert dict(study_report.shared_fields([plain]))["optimizer.momentum"]
    for field, group, name in (
        ("model.activation", "model", "vgg11"),
        ("loss.reduction", "loss", "mse"),
    ):
        plain[group]["name"] = name
        assert field in dict(study_report.shared_fields([plain]))


def test_claims_that_the_runs_do_not_decide_are_folded_away(tmp_path):
    write_axis(tmp_path, [{"seed": 0}, {"seed": 1}])
    for index in range(2):
        write_cell(tmp_path, index)
    text = study_report.write_report(tmp_path).read_text()
    shown, folded = text.split("Claims of the paper that these runs do not decide", 1)
    assert "Dom-SGD stalls" in shown
    assert "Interpolation trades" in folded.split("</details>")[0]
    assert "not measured" not in shown


def test_a_sweep_that_decides_no_claim_has_no_claims_table(tmp_path):
    write_axis(tmp_path, grid.values("rank", (1, 5)))
    for index in range(2):
        write_cell(tmp_path, index, energies=False)
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "claims.md").write_text("of an earlier report")
    assert "Claims" not in study_report.write_report(tmp_path).read_text()
    assert not (folder / "claims.md").exists()
    assert "claims" not in json.loads((folder / "tables.json").read_text())
