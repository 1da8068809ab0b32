"""What the figures of studies share: points and bands over seeds, labels, legends."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bulk_sgd.lab.report import style as style_lib
from bulk_sgd.lab.report.study import Axis, short_name
from bulk_sgd.lab.report.style import MUTED, LineStyle, log_axis
from bulk_sgd.lab.sweep.grid import LABEL

# What a panel shows: key of `Cell.outcome`, label, log scale, line of reference.
PANELS = (
    ("loss_ratio", "last loss / loss at the fork", True, 1.0),
    ("sharpness_ratio", r"last sharpness $\eta\lambda_1$", False, None),
    ("stable_rate", r"largest stable $\eta$", True, None),
)
LAST_LOSS = "train_loss", "last training loss", True, None


def measured_panels(axis: Axis) -> list[tuple]:
    """Those of `PANELS` that an axis has numbers for.

    If no fork is common to all settings, ratios to it do not compare them: the first
    panel is the last loss itself.
    """
    panels = (PANELS[0] if axis.shares_forks else LAST_LOSS, *PANELS[1:])
    return [panel for panel in panels if axis.measured(panel[0])]


def draw_spreads(axes: Axes, places, spreads, style: LineStyle, log, joined=True):
    """Means as points, `joined` by lines or not, with bars of one deviation."""
    means = np.array([spread.mean for spread in spreads])
    bars = np.array([spread.deviation for spread in spreads])
    if log:  # as far up as down on the axis
        bars = np.abs(means * np.expm1(np.outer([-1, 1], bars / means)))
    line = vars(style) | {"linewidth": min(style.linewidth, 1.7)}
    line |= {} if joined else {"linestyle": "none"}
    points = {"marker": "o", "markersize": 4, "capsize": 2, "elinewidth": 1}
    axes.errorbar(places, means, bars, **points, **line)


def draw_band(axes: Axes, cells, arm: str, key: str, style: LineStyle) -> None:
    """Mean ± deviation over the runs, at the steps that all of them logged."""
    runs = [cell.run for cell in cells if arm in cell.arms]
    tables = [dict(zip(*run.logged(arm, key))) for run in runs]
    tables = [table for table in tables if table]
    if not tables:
        return
    steps = sorted(set.intersection(*map(set, tables)))
    values = np.array([[table[step] for step in steps] for table in tables])
    mean = values.mean(axis=0)
    axes.plot(steps, mean, **vars(style))
    if len(tables) > 1:
        deviation = values.std(axis=0, ddof=1)
        low, high = mean - deviation, mean + deviation
        low = np.maximum(low, 0) if (values >= 0).all() else low
        axes.fill_between(steps, low, high, color=style.color, alpha=0.18, linewidth=0)


def share_steps(panels) -> None:
    """Gives all panels one range of steps; each keeps its labels."""
    for axes in panels[1:]:
        axes.sharex(panels[0])


def finish_panel(axes: Axes, axis: Axis, panel: tuple) -> None:
    """Scale, label and line of reference of one of `PANELS`."""
    key, name, log, reference = panel
    if log:
        log_axis(axes)
    if key == "sharpness_ratio":  # the threshold that all cells share
        found = {cell.run.stability for cell in axis.cells if cell.run}
        reference = found.pop() if len(found) == 1 else None
    if reference is not None and math.isfinite(reference):
        axes.axhline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_ylabel(name)


def legend(figure: Figure, entries) -> None:
    """One legend for all panels, from pairs (label, style)."""
    handles = [Line2D([], [], **vars(line)) for _, line in entries]
    labels = [label for label, _ in entries]
    style_lib.legend(figure, labels, handles)


def field_label(axis: Axis) -> str:
    """The fields that an axis varies, in words; nothing if labels name them."""
    labelled = any(LABEL in cell.settings for cell in axis.cells)
    named = labelled or any(map(axis.is_flag, axis.varied))
    return "" if named else ", ".join(map(short_name, axis.varied or axis.fields))
