"""The figures of the next step and of the eigenvectors."""

import numpy as np
import pytest
from written_runs import edit_rows, write_run

from bulk_sgd.lab.report import step_figures
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.report.run_report import figures_of
from bulk_sgd.lab.report.write import write_report

FIGURES = {"changes", "step_sharpness", "eigenvectors", "ranks"}


def measured(row):
    """A row with what `config.measures` adds to those of an arm."""
    if row["arm"] == "prefix":
        return row
    more = {
        "step/measured_dominant": 1e-3 * (-1) ** (row["step"] // 10),
        "step/measured_bulk": -1e-4,
        "step/measured_whole": -1e-4,
        "step/predicted_dominant": 2e-3,
        "step/predicted_bulk": -1e-4,
        "step/critical_sharpness": 90.0,
        "step/sharpness_update": 40.0,
        "step/sharpness_gradient": 80.0,
        "batch_sharpness": 120.0,
        "batch_sharpness_update": 130.0,
        "displacement": [0.5, None, 0.1],
        "displacement_subspace": 0.2,
        "localization": [9.0, 3.0, None],
        "rank_profile": [0.7, 0.8, 0.9, 1.0],
        "rank_profile/dense_0/kernel": [0.6, 0.8, 0.9, 1.0],
        "rank_profile/dense_1/kernel": [0.8, None, 0.9, 1.0],
    }
    return row | more


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path, stability_threshold=4.0, batch_stability_threshold=1.0)
    edit_rows(tmp_path, measured)
    return read_run(tmp_path)


def line_of(axes, arm):
    (found,) = [line for line in axes.lines if line.get_label() == arm]
    return found


def test_figures_are_there_where_something_was_measured(run, tmp_path):
    page = write_report(tmp_path).read_text("utf-8")
    assert set(figures_of(run)) > FIGURES
    for name in FIGURES:
        assert (tmp_path / "report" / f"{name}.png").exists()
    assert "SGD, step 200: the share of the squared length" in page
    other = tmp_path / "other"
    write_run(other)
    assert not set(figures_of(read_run(other))) & FIGURES
    assert "Sharpness along the step" not in write_report(other).read_text("utf-8")


def test_lines_are_the_columns_and_pale_ones_their_companions(run):
    left, right = step_figures.change_figure(run).axes
    assert set(line_of(left, "sgd").get_ydata()) == {-1e-3, 1e-3}
    assert set(line_of(right, "sgd").get_ydata()) == {-1e-4}
    pale = [line for line in left.lines if line.get_alpha() and line.get_ydata().size]
    assert {x for line in pale for x in line.get_ydata()} == {2e-3}
    left, right = step_figures.eigenvector_figure(run).axes
    assert set(line_of(left, "sgd").get_ydata()) == {0.2}
    assert set(line_of(right, "sgd").get_ydata()) == {6.0}  # of those that are there
    pale = [line for line in left.lines if line.get_alpha() and line.get_ydata().size]
    assert {round(x, 6) for line in pale for x in line.get_ydata()} == {0.3}


def test_thresholds_are_those_of_the_step_the_optimizer_and_small_batches(run):
    panels = step_figures.step_sharpness_figure(run).axes
    values = [np.concatenate([x.get_ydata() for x in axes.lines]) for axes in panels]
    assert [90.0 in x for x in values] == [True, False, False]
    assert [200.0 in x for x in values] == [True, False, False]  # 2 / 0.01
    assert [400.0 in x for x in values] == [False, True, True]
    assert [100.0 in x for x in values] == [False, False, True]


def test_ranks_are_those_of_the_last_row(run):
    (axes,) = step_figures.rank_figure(run).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "dense_0/kernel",
        "dense_1/kernel",
    ]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [60, 80])
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [80, np.nan])
    (legend,) = axes.figure.legends
    assert legend.get_texts()[-1].get_text() == "rank 8"  # the last of its columns


def test_labels_of_stacked_panels_stand_apart(run):
    axes = step_figures.step_sharpness_figure(run).axes[0]
    labels = {run.summary(arm).label for arm in run.arms}
    texts = [text for text in axes.texts if text.get_text() in labels]
    place = lambda text: text.get_transform().transform(text.get_position())[1]
    heights = sorted(map(place, texts))  # in pixels; all lines end at 90
    assert np.diff(heights).min() > texts[0].get_fontsize() / 72 * axes.figure.dpi
