"""Figures of a study: one per axis, over seeds.

Points and lines are means over seeds, bars and bands one standard deviation. On a log
scale both are taken of the logarithms, so that no bar reaches below zero. Each method
has the colour that it has in the figures of a run; families of methods, drawn as one
line, have colours of their own.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report.energies import energy_figure, has_energies
from bulk_sgd.lab.report.scale_figures import (
    family_figure,
    path_points,
    plane_figure,
    plane_scales,
)
from bulk_sgd.lab.report.study import Axis, short_name
from bulk_sgd.lab.report.study_panels import (
    draw_band,
    draw_spreads,
    field_label,
    finish_panel,
    legend,
    measured_panels,
)
from bulk_sgd.lab.report.style import STYLE, arm_styles, new_figure, plain, shorten


def figures_of(axis: Axis) -> dict[str, Figure]:
    """The figures that the cells of an axis allow, by name."""
    found = {}
    measured = bool(measured_panels(axis))
    if len(axis.groups) > 1:
        found |= {"settings": setting_figure(axis)} if measured else {}
    elif len(plane_scales(axis)[0]) > 2:
        found |= {"plane": plane_figure(axis)} if measured else {}
    elif any(len(points) > 2 for points in path_points(axis).values()):
        found |= {"families": family_figure(axis)} if measured else {}
    elif any(cell.run for cell in axis.cells):
        found["training"] = training_figure(axis)
    if has_energies(axis):
        found["energies"] = energy_figure(axis)
    return found


@matplotlib.rc_context(STYLE)
def setting_figure(axis: Axis) -> Figure:
    """Final loss, sharpness and stable rate of each method, setting by setting."""
    shown = measured_panels(axis)
    labels = list(axis.groups)
    ticks = _tick_labels(axis)
    longest = max(map(len, ticks))
    height = 3.9 if longest <= 24 else 6.2
    figure, panels = new_figure(1, len(shown), (10.4, height))
    styles = arm_styles(axis.summaries.values())
    for axes, panel in zip(panels, shown):
        key, _, log, _ = panel
        for i, (arm, style) in enumerate(styles.items()):
            spreads = [axis.spread(label, arm, key, log=log) for label in labels]
            places = np.arange(len(labels)) + 0.07 * (i - (len(styles) - 1) / 2)
            joined = axis.values is not None  # nothing lies between words
            draw_spreads(axes, places, spreads, style, log=log, joined=joined)
        finish_panel(axes, axis, panel)
        axes.set_xticks(
            range(len(labels)),
            [plain(shorten(tick, 52)) for tick in ticks],
            rotation=0 if longest <= 5 else 30 if longest <= 24 else 90,
            ha="right" if 5 < longest <= 24 else "center",
        )
    figure.supxlabel(plain(field_label(axis)), fontsize=STYLE["font.size"])
    _name_arms(figure, axis, styles)
    return figure


@matplotlib.rc_context(STYLE)
def training_figure(axis: Axis) -> Figure:
    """Training loss, sharpness and alignment after the fork, over the seeds."""
    figure, panels = new_figure(1, 3, (10.4, 3.7))
    styles = arm_styles(axis.summaries.values())
    shown = (
        ("train_loss", "training loss", True, None),
        ("sharpness_ratio", r"sharpness $\eta\lambda_1$", False, None),
        ("alignment_gradient", r"$\chi_k$ of the full gradient", False, None),
    )
    for axes, panel in zip(panels, shown):
        for arm, style in styles.items():
            draw_band(axes, axis.cells, arm, panel[0], style)
        finish_panel(axes, axis, panel)
        axes.set_xlabel("step")
    _name_arms(figure, axis, styles)
    return figure


def _name_arms(figure, axis, styles):
    labels = {arm: plain(summary.label) for arm, summary in axis.summaries.items()}
    legend(figure, [(labels[arm], style) for arm, style in styles.items()])


def _tick_labels(axis):
    """The settings, without the names of fields where all of them set the same ones."""
    labels = list(axis.groups)
    if not all(len(label.split(", ")) == len(axis.fields) for label in labels):
        return labels
    names = [f"{short_name(field)} " for field in axis.fields]
    bare = lambda part, name: part.removeprefix(name)
    return [", ".join(map(bare, label.split(", "), names)) for label in labels]
