"""Figures of studies: ticks, bars, planes, families, curves and columns."""

import json

import numpy as np
import pytest
from written_runs import edit_rows
from written_studies import LOSSES, SCALES, write_axis, write_cell

from bulk_sgd.lab.report import (
    energies,
    saving,
    scale_figures,
    study,
    study_figures,
    study_report,
)
from bulk_sgd.lab.report.style import new_figure
from bulk_sgd.lab.sweep import grid


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


def test_settings_of_other_prefixes_are_compared_by_their_last_loss(tmp_path):
    write_axis(tmp_path, grid.values("rank", (1, 5)))
    for index in range(2):
        write_cell(tmp_path, index, arms=("sgd",))
    shown = lambda: study_figures.setting_figure(study.read_study(tmp_path)[0]).axes[0]
    assert shown().get_ylabel() == "last loss / loss at the fork"
    edit_rows(tmp_path / "cells/001", lambda x: x | {"train_loss": 3 * x["train_loss"]})
    assert shown().get_ylabel() == "last training loss"
    # No line at the loss of a fork.
    assert not [line for line in shown().lines if list(line.get_ydata()) == [1, 1]]
    np.testing.assert_allclose(shown().lines[0].get_ydata(), [0.4, 1.2])
    page = study_report.write_report(tmp_path).read_text()
    assert '<th scope="col">last loss</th>' in page
    assert "<td>1.20</td>" in page
    assert "Dashed: the optimizer" in page


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
        is_first = axes is panels[0]
        assert is_first or axes.get_shared_x_axes().joined(axes, panels[0])
    page = study_report.write_report(tmp_path)
    assert '<th scope="col">moved</th>' in page.read_text()
    assert "<td>4.50 ±\N{NO-BREAK SPACE}0.71</td>" in page.read_text()
    found = json.loads((page.parent / "tables.json").read_text())
    cells = found["axes"][tmp_path.name]
    assert [x["arms"]["sgd"]["own/moved"] for x in cells][:2] == [4, 5]
    far = lambda row: row | {"own/moved": 100 * (row["own/moved"] or 0)}
    edit_rows(tmp_path / "cells/000", far)
    (axis,) = study.read_study(tmp_path)
    (band,) = study_figures.own_figure(axis).axes[0].collections[0].get_paths()
    assert band.vertices[:, 1].min() == 0  # not below, as no number is


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
