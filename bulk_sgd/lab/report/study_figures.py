"""Figures of a study: one per axis, over seeds.

Points and lines are means over seeds, bars and bands one standard deviation. On a log
scale both belong to the logarithms, so no bar reaches below zero.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report import scale_figures, study_panels
from bulk_sgd.lab.report.energies import energy_figure, has_energies
from bulk_sgd.lab.report.results import SGD
from bulk_sgd.lab.report.study import Axis, one_arm_each, short_name
from bulk_sgd.lab.report.style import (
    INK,
    STYLE,
    LineStyle,
    arm_styles,
    log_axis,
    new_figure,
    plain,
    series_styles,
    shorten,
)

MOST_COLUMNS = 4  # methods side by side


def figures_of(axis: Axis) -> dict[str, Figure]:
    """The figures that the cells of an axis allow, by name."""
    found = {}
    name, draw = "training", training_figure
    if len(axis.groups) > 1:
        name, draw = "settings", setting_figure
    elif len(scale_figures.plane_scales(axis)[0]) > 2:
        name, draw = "plane", scale_figures.plane_figure
    elif any(len(points) > 2 for points in scale_figures.path_points(axis).values()):
        name, draw = "families", scale_figures.family_figure
    begun = any(cell.run for cell in axis.cells)
    if begun and name == "settings":
        found["curves"] = curves_figure(axis)
    if begun if name == "training" else study_panels.measured_panels(axis):
        found[name] = draw(axis)
    if axis.own:
        found["own"] = own_figure(axis)
    if has_energies(axis):
        found["energies"] = energy_figure(axis)
    return found


@matplotlib.rc_context(STYLE)
def setting_figure(axis: Axis) -> Figure:
    """Final loss, sharpness and stable rate of each method, setting by setting."""
    shown = study_panels.measured_panels(axis)
    labels = list(axis.groups)
    ticks = _tick_labels(axis)
    longest = max(map(len, ticks))
    height = 3.9 if longest <= 24 else 6.2
    figure, panels = new_figure(1, len(shown), (10.4, height))
    styles = arm_styles(axis.summaries.values())
    joined = axis.values is not None  # nothing lies between words
    for axes, panel in zip(panels, shown):
        key, _, log, _ = panel
        for i, (arm, style) in enumerate(styles.items()):
            spreads = [axis.spread(label, arm, key, log=log) for label in labels]
            places = np.arange(len(labels)) + 0.07 * (i - (len(styles) - 1) / 2)
            study_panels.draw_spreads(axes, places, spreads, style, log, joined)
        study_panels.finish_panel(axes, axis, panel)
        axes.set_xticks(
            range(len(labels)),
            [plain(shorten(tick, 52)) for tick in ticks],
            rotation=0 if longest <= 5 else 30 if longest <= 24 else 90,
            ha="right" if 5 < longest <= 24 else "center",
        )
    figure.supxlabel(plain(study_panels.field_label(axis)), fontsize=STYLE["font.size"])
    _name_arms(figure, axis, styles)
    return figure


@matplotlib.rc_context(STYLE)
def training_figure(axis: Axis) -> Figure:
    """Training loss, sharpness and alignment after the fork, over the seeds."""
    styles = arm_styles(axis.summaries.values())
    shown = (
        ("train_loss", "training loss", True, None),
        ("sharpness_ratio", r"sharpness $\eta\lambda_1$", False, None),
        ("alignment_gradient", r"$\chi_k$ of the full gradient", False, None),
    )
    shown = [shown[0], *(panel for panel in shown[1:] if _is_logged(axis, panel[0]))]
    figure, panels = new_figure(1, len(shown), (10.4, 3.7))
    for axes, panel in zip(panels, shown):
        for arm, style in styles.items():
            study_panels.draw_band(axes, axis.cells, arm, panel[0], style)
        study_panels.finish_panel(axes, axis, panel)
        axes.set_xlabel("step")
    _name_arms(figure, axis, styles)
    return figure


@matplotlib.rc_context(STYLE)
def curves_figure(axis: Axis) -> Figure:
    """Loss and alignment along training, a column per method, a line per setting."""
    keys = ("train_loss", "training loss"), ("alignment_update", r"$\chi_k$ of updates")
    shown = [keys[0], *(x for x in keys[1:] if _is_logged(axis, x[0]))]
    figure, panels = _curves(axis, shown)
    log_axis(panels[0])
    return figure


@matplotlib.rc_context(STYLE)
def own_figure(axis: Axis) -> Figure:
    """Measurements by the user's functions along training, a row of panels for each."""
    keys = [(key, plain(key.removeprefix("own/"))) for key in axis.own]
    if len(axis.groups) > 1:
        return _curves(axis, keys)[0]
    figure, panels = new_figure(len(keys), 1, (10.4, 0.6 + 2.7 * len(keys)))
    study_panels.share_steps(panels)
    styles = arm_styles(axis.summaries.values())
    for axes, (key, name) in zip(panels, keys):
        for arm, style in styles.items():
            study_panels.draw_band(axes, axis.cells, arm, key, style)
        axes.set_ylabel(name)
        axes.set_xlabel("step")
    _name_arms(figure, axis, styles)
    return figure


def _curves(axis, keys):
    """A row of panels for each pair (key, label), and their figure."""
    columns = {arm: (arm,) for arm in [*axis.summaries][:MOST_COLUMNS]}
    if one_arm_each(axis.groups):
        columns = {"": tuple(axis.summaries)}
    size = 10.4, 0.6 + 2.7 * len(keys)
    figure, panels = new_figure(len(keys), len(columns), size, share="row")
    study_panels.share_steps(panels)
    styles = group_styles(axis)
    for row, (key, name) in enumerate(keys):
        for column, (title, arms) in enumerate(columns.items()):
            axes = panels[row * len(columns) + column]
            for label, cells in axis.groups.items():
                for arm in arms:
                    study_panels.draw_band(axes, cells, arm, key, styles[label])
            label = axis.summaries[title].label if title else ""
            axes.set_title(plain(shorten(label)), loc="left")
            if row == len(keys) - 1:
                axes.set_xlabel("step")
        panels[row * len(columns)].set_ylabel(name)
        if key == "alignment_update":  # bands of one deviation may leave its range
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
    field = f"{study_panels.field_label(axis)} " if axis.values else ""
    labels = [plain(shorten(field + label, 52)) for label in axis.groups]
    study_panels.legend(figure, [*zip(labels, styles.values())])
    return figure, panels


def group_styles(axis: Axis) -> dict[str, LineStyle]:
    """One style per setting: its arm's, if each setting has an arm of its own."""
    arms = [
        {arm for cell in cells for arm in cell.arms} for cells in axis.groups.values()
    ]
    if all(len(found) == 1 for found in arms) and len(axis.summaries) == len(arms):
        styles = arm_styles(axis.summaries.values())
        return {label: styles[arm] for label, (arm,) in zip(axis.groups, arms)}
    if axis.tune and one_arm_each(axis.groups):  # as in the figures of tuned rows
        plain = _reference(axis)
        others = series_styles([x for x in axis.groups if x != plain])
        return {x: others.get(x, LineStyle(INK)) for x in axis.groups}
    return series_styles([*axis.groups], ordered=axis.is_numeric)


def _reference(axis):
    """The label of the setting with which a tuned axis compares the others."""
    arms = {x: arm for x, cells in axis.groups.items() for c in cells for arm in c.arms}
    named = [x for x, arm in arms.items() if axis.tune.is_reference(x, arm)]
    plain = [x for x, arm in arms.items() if axis.summaries[arm].method == SGD]
    return next(iter([*named, *plain, *axis.groups]))


def _is_logged(axis, key):
    runs = [cell.run for cell in axis.cells if cell.run]
    return any(run.logged(arm, key)[0].size for run in runs for arm in run.arms)


def _name_arms(figure, axis, styles):
    labels = [plain(axis.summaries[arm].label) for arm in styles]
    study_panels.legend(figure, [*zip(labels, styles.values())])


def _tick_labels(axis):
    """The settings, without the names of fields where all of them set the same ones."""
    labels = list(axis.groups)
    if not all(len(label.split(", ")) == len(axis.varied) for label in labels):
        return labels
    names = [f"{short_name(field)} " for field in axis.varied]
    bare = lambda part, name: part.removeprefix(name)
    return [", ".join(map(bare, label.split(", "), names)) for label in labels]
