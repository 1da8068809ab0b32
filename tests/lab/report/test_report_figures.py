"""The figures in the report of a run."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from written_runs import KINDS, SWITCH, edit_rows, write_run

from bulk_sgd.lab.report import eigenvalue_figure, run_figures
from bulk_sgd.lab.report.results import read_run
from bulk_sgd.lab.report.style import arm_styles, log_axis, new_figure, spread
from bulk_sgd.lab.report.write import write_report


def test_colors_do_not_depend_on_the_other_arms(tmp_path):
    everything = read_run(write_run(tmp_path, **KINDS["complete"]))
    summaries = [everything.summary(arm) for arm in everything.arms]
    styles = arm_styles(summaries)
    assert styles["sgd"].color == "#222222"
    assert styles["dom_sgd"].color == "#D55E00"
    assert styles["bulk_sgd"].color == "#0072B2"
    assert arm_styles(summaries[::-1]) == styles
    assert arm_styles(summaries[:2])["dom_sgd"] == styles["dom_sgd"]
    assert len({style.color for style in styles.values()}) == 5
    dashed = {styles[name].linestyle for name in summaries_between(summaries)}
    assert len(dashed) == 2
    assert "-" not in dashed


def summaries_between(summaries):
    return [s.name for s in summaries if s.method is None]


def test_every_figure_uses_the_same_colors(tmp_path):
    run = read_run(write_run(tmp_path, **KINDS["complete"]))
    styles = arm_styles([run.summary(arm) for arm in run.arms])
    colors = {name: to_hex(style.color) for name, style in styles.items()}
    for figure in (run_figures.loss_figure(run), run_figures.alignment_figure(run)):
        for axes in figure.axes:
            drawn = {line.get_label(): to_hex(line.get_color()) for line in axes.lines}
            assert {name: drawn[name] for name in colors} == colors
    panels = dict(zip(run.arms, eigenvalue_figure.eigenvalue_figure(run).axes))
    for name, axes in panels.items():
        assert axes.get_title(loc="left").startswith(run.summary(name).label)
        assert colors[name] in {to_hex(line.get_color()) for line in axes.lines}
    bars = run_figures.cost_figure(run).axes[0].patches
    drawn = [to_hex(bar.get_facecolor()) for bar in bars[2::2]]
    assert drawn == [colors[arm] for arm in run.arms]
    text = write_report(tmp_path).read_text("utf-8").lower()
    assert all(f"background:{color}" in text for color in colors.values())


def test_fork_is_marked_with_step_and_reason(tmp_path):
    run = read_run(write_run(tmp_path))
    for figure in (run_figures.loss_figure(run), run_figures.alignment_figure(run)):
        for axes in figure.axes:
            assert any(list(line.get_xdata()) == [SWITCH] * 2 for line in axes.lines)
        shown = [text.get_text() for text in figure.axes[0].texts]
        assert "fork at step 100\n(alignment 0.953 > 0.95)" in shown
    write_run(tmp_path, switch={"step": SWITCH, "reason": "step 100"})
    assert read_run(tmp_path).fork_text == "step 100"


def test_a_title_has_the_room_above_the_axes(tmp_path):
    run = read_run(write_run(tmp_path))
    for axes in run_figures.loss_figure(run).axes:
        axes.set_title("mine")
        axes.figure.draw_without_rendering()
        title = axes.title.get_window_extent()
        assert not any(title.overlaps(x.get_window_extent()) for x in axes.texts)


def test_labels_follow_their_lines_to_another_scale(tmp_path):
    run = read_run(write_run(tmp_path))
    axes = run_figures.loss_figure(run).axes[0]
    axes.set_yscale("linear")
    axes.figure.draw_without_rendering()
    (label,) = [text for text in axes.texts if text.get_text() == "Dom-SGD"]
    _, height = label.get_transform().transform(label.get_position())
    _, end = axes.transData.transform((0, 0.49))
    # The labels of SGD and Bulk-SGD, at its feet on a log scale, may move it by a line.
    assert abs(height - end) < 1.5 * axes.figure.dpi * label.get_fontsize() / 72


def test_own_panels_are_in_the_order_of_the_config_and_take_another_scale(tmp_path):
    paths = "mine:weight", "mine:parts", "mine:Net.area"
    write_run(tmp_path, config={"measures": {"own": paths}})
    edit_rows(
        tmp_path,
        lambda row: (
            row
            | {
                "own/Net.area": row["step"] / 10 + 1e-3,
                "own/parts/b": 3,
                "own/parts/a": 2,
            }
            | {"own/weight": 1}
        ),
    )
    run = read_run(tmp_path)
    order = "weight", "parts/b", "parts/a", "Net.area"
    assert run.own == tuple(f"own/{name}" for name in order)
    *_, axes = run_figures.own_figure(run).axes
    axes.set_yscale("log")
    assert 1e-4 < axes.get_ylim()[0] < 1e-3
    assert 20 < axes.get_ylim()[1] < 100
    first, _ = run_figures.loss_figure(run).axes
    first.set_yscale("linear")
    assert first.get_ylim()[0] < 0.05  # further from 0.1 than on the log scale


def test_no_accuracy_above_100_has_a_tick(tmp_path):
    write_run(tmp_path)
    edit_rows(tmp_path, lambda row: row | {"test_accuracy": row["step"] / 200})
    axes = run_figures.loss_figure(read_run(tmp_path)).axes[1]
    assert axes.get_yticks()[-1] == 100
    assert 100 < axes.get_ylim()[1] < 102


def test_the_full_gradient_has_a_panel_if_it_was_measured(tmp_path):
    write_run(tmp_path)
    assert len(run_figures.alignment_figure(read_run(tmp_path)).axes) == 2
    assert "of the gradient over the whole" in write_report(tmp_path).read_text()
    edit_rows(tmp_path, lambda row: row | {"alignment_gradient": None})
    assert len(run_figures.alignment_figure(read_run(tmp_path)).axes) == 1
    html = write_report(tmp_path).read_text()
    assert "of the update before it is projected." in html
    assert "of the gradient over the whole" not in html


def test_divergence_is_marked_and_does_not_squeeze_the_others(tmp_path):
    run = read_run(write_run(tmp_path, **KINDS["diverged"]))
    axes = run_figures.loss_figure(run).axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert axes.get_ylim()[1] == pytest.approx(20.0)
    # 7e14 at step 150 is far out: marked where the line leaves the axes.
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (110, pytest.approx(20.0))
    write_run(tmp_path, **KINDS["diverged"] | {"ends": {"sgd": 0.1, "bulk_sgd": 2.0}})
    axes = run_figures.loss_figure(read_run(tmp_path)).axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (150, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("rate", "marked"), [(0.01, True), (1e-6, False), (None, False)]
)
def test_stability_threshold_is_drawn_where_it_can_be_seen(tmp_path, rate, marked):
    run = read_run(write_run(tmp_path, learning_rate=rate))
    axes = eigenvalue_figure.eigenvalue_figure(run).axes[0]
    across = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert [line.get_ydata()[0] for line in across] == [200.0] * marked
    assert any("= 200" in text.get_text() for text in axes.texts) == marked


def test_threshold_of_a_schedule_is_drawn_along_the_steps(tmp_path):
    write_run(tmp_path, **KINDS["complete"], stability_threshold=3.8)
    rate = lambda row: 0.02 * (row["step"] // 100) / 2
    edit_rows(tmp_path, lambda row: row | {"learning_rate": rate(row)})
    run = read_run(tmp_path)
    axes = eigenvalue_figure.eigenvalue_figure(run).axes[0]
    (curve,) = [  # the other dashed one marks the fork
        line
        for line in axes.lines
        if line.get_linestyle() == "--" and len(line.get_xdata()) > 2
    ]
    assert curve.get_xdata().tolist() == list(range(100, 201, 10))
    np.testing.assert_allclose(curve.get_ydata(), [380.0] * 10 + [190.0])
    html = write_report(tmp_path).read_text()
    assert "Dashed: the stability threshold 3.8/η of the optimizer." in html
    assert "Last sharpness ηλ₁, stable below 3.8: " in html


def test_optimizers_without_a_threshold_get_none(tmp_path):
    write_run(tmp_path, **KINDS["complete"], stability_threshold=None)
    run = read_run(tmp_path)
    assert not math.isfinite(eigenvalue_figure.stability_threshold(run))
    html = write_report(tmp_path).read_text()
    assert "stability threshold" not in html
    assert "Last sharpness ηλ₁: " in html


def test_negative_eigenvalues_are_drawn_too(tmp_path):
    write_run(tmp_path)
    negative = lambda row: row["eigenvalues"] and [*row["eigenvalues"][:2], -3.5]
    edit_rows(tmp_path, lambda row: row | {"eigenvalues": negative(row)})
    figure = eigenvalue_figure.eigenvalue_figure(read_run(tmp_path))
    assert figure.axes[0].get_yscale() == "symlog"


def test_panels_of_eigenvalues_name_the_step_below_each_column(tmp_path):
    run = read_run(write_run(tmp_path, **KINDS["complete"]))
    labels = [x.get_xlabel() for x in eigenvalue_figure.eigenvalue_figure(run).axes]
    assert labels == ["", "", "step", "step", "step"]


def test_cost_is_stacked_and_compared_per_step(tmp_path):
    until = {"bulk_sgd": 150}
    ends = {"sgd": 0.1, "bulk_sgd": 0.1}
    write_run(tmp_path, until=until, ends=ends, plain_step_seconds=0.6)
    times = lambda row: 6 if row["arm"] == "bulk_sgd" else 1
    edit_rows(tmp_path, lambda row: row | {"seconds": times(row) * row["seconds"]})
    axes = run_figures.cost_figure(read_run(tmp_path)).axes[0]
    # Bulk-SGD: 25 s × 6 over half of SGD's steps, 20 s of it in curvature.
    inside, outside = axes.patches[-2:]
    assert (inside.get_width(), outside.get_width()) == (20, 130)
    assert outside.get_x() == 20
    # 150 s over 50 steps, against 0.6 s for a step without curvature.
    assert axes.texts[-1].get_text() == "600 matvecs, 5.0× a plain SGD step"


def test_axis_of_alignments_shows_their_differences_and_few_points_are_marked(tmp_path):
    run = read_run(write_run(tmp_path))
    left, right = run_figures.alignment_figure(run).axes
    # After the fork 0.8 and 0.9; the row at the fork, at 0.2, is out of the figure.
    np.testing.assert_allclose(left.get_ylim(), (0.75, 0.95))
    np.testing.assert_allclose(right.get_ylim(), (0.85, 0.95))
    drawn = {line.get_label(): line for line in left.lines}
    assert drawn["sgd"].get_marker() == "o"
    lines = (tmp_path / "metrics.jsonl").read_text()
    edit_rows(tmp_path, lambda row: row | {"step": row["step"] + 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(lines)
    left = run_figures.alignment_figure(read_run(tmp_path)).axes[0]
    drawn = {line.get_label(): line for line in left.lines}
    assert drawn["sgd"].get_marker() == "None"  # of 22 points


@pytest.mark.parametrize(("high", "least"), [(3e-2, 2), (0.1, 5), (1, 2), (1e11, 2)])
def test_log_axes_of_any_length_have_numbers(high, least):
    _, (axes,) = new_figure(1, 1, (4, 3))
    log_axis(axes)
    axes.set_ylim(1e-2, high)
    labels = axes.yaxis.get_ticklabels(which="both")
    places = [x.get_position()[1] for x in labels if x.get_text()]
    assert sum(1e-2 <= place <= high for place in places) >= least


def test_heights_are_spread_in_order():
    heights = np.array([0.0, 0.01, 0.5, 0.5, 0.51, 1.0])
    placed = spread(heights, 0.1)
    assert (np.diff(placed) >= 0.1 - 1e-12).all()
    assert placed[0] >= 0
    assert placed[-1] <= 1
    np.testing.assert_allclose(placed[2:5], [0.4033, 0.5033, 0.6033], atol=0.01)
    np.testing.assert_allclose(spread(np.zeros(3), 9.0), [0, 0.5, 1])
