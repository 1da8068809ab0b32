"""Figures of a study: one per axis, over seeds.

Points and lines are means over seeds, bars and bands one standard deviation; points and
bars on a log scale are those of the logarithms, so that no bar reaches below zero. Each
method has the colour that it has in the figures of a run; families of them, of which a
line holds several, have colours of their own.
"""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bulk_sgd.lab.report.study import SGD, Axis, has_energies, short_name
from bulk_sgd.lab.report.style import (
    INK,
    MUTED,
    STYLE,
    LineStyle,
    arm_styles,
    log_axis,
    new_figure,
    plain,
    shorten,
)
from bulk_sgd.transforms.aliases import PATHS, path_scales

# What a panel shows: key of `Cell.outcome`, label, log scale, line of reference.
_PANELS = (
    ("loss_ratio", "last loss / loss at the fork", True, 1.0),
    ("sharpness_ratio", r"last sharpness $\eta\lambda_1$", False, 2.0),
    ("stable_rate", r"largest stable $\eta$", True, None),
)
_PATH_STYLES = {
    "bulk": LineStyle("#0072B2"),
    "dom": LineStyle("#D55E00", (0, (5, 1.6))),
    "cross": LineStyle("#009E73", (0, (1.2, 1.4))),
}
OPERATORS = {
    "hessian": (r"$H$", LineStyle("#222222", linewidth=2.4)),
    "gauss_newton": (r"$G$", LineStyle("#009E73", (0, (5, 1.6)))),
    "functional_hessian": (r"$F$", LineStyle("#CC79A7", (0, (1.2, 1.4)))),
}


def figures_of(axis: Axis) -> dict[str, Figure]:
    """The figures that the cells of an axis allow, by name."""
    found = {}
    measured = any(_measured(axis, key) for key, *_ in _PANELS)
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
    shown = [panel for panel in _PANELS if _measured(axis, panel[0])]
    labels = list(axis.groups)
    ticks = _tick_labels(axis)
    longest = max(map(len, ticks))
    height = 3.9 if longest <= 24 else 6.2
    figure, panels = new_figure(1, len(shown), (10.4, height))
    styles = _styles(axis)
    for axes, (key, name, log, reference) in zip(panels, shown):
        for i, (arm, style) in enumerate(styles.items()):
            spreads = [axis.spread(label, arm, key, log=log) for label in labels]
            places = np.arange(len(labels)) + 0.07 * (i - (len(styles) - 1) / 2)
            joined = axis.values is not None
            _draw(axes, places, spreads, style, log=log, joined=joined)
        _finish(axes, name, log, _threshold(axis, key, reference))
        axes.set_xticks(
            range(len(labels)),
            [plain(shorten(tick, 52)) for tick in ticks],
            rotation=0 if longest <= 5 else 30 if longest <= 24 else 90,
            ha="right" if 5 < longest <= 24 else "center",
        )
    figure.supxlabel(plain(_field_label(axis)), fontsize=STYLE["font.size"])
    _legend(figure, [(_arm_label(axis, arm), s) for arm, s in styles.items()])
    return figure


@matplotlib.rc_context(STYLE)
def family_figure(axis: Axis) -> Figure:
    """Final loss, sharpness and stable rate along the families of scales (a, b)."""
    shown = [panel for panel in _PANELS if _measured(axis, panel[0])]
    figure, panels = new_figure(1, len(shown), (10.4, 3.7))
    label = next(iter(axis.groups))
    for axes, (key, name, log, reference) in zip(panels, shown):
        for path, points in path_points(axis).items():
            spreads = [axis.spread(label, arm, key, log=log) for _, arm in points]
            places = [alpha for alpha, _ in points]
            _draw(axes, places, spreads, _PATH_STYLES[path], log=log)
        _finish(axes, name, log, _threshold(axis, key, reference))
        axes.set_xlabel("α")
    formulas = {"bulk": "(α, 1)", "dom": "(1, α)", "cross": "(α, 1 − α)"}
    _legend(
        figure,
        [(f"{path} path {formulas[path]}", s) for path, s in _PATH_STYLES.items()],
    )
    return figure


@matplotlib.rc_context(STYLE)
def plane_figure(axis: Axis) -> Figure:
    """Maps over the scales (a, b): how far the loss fell, and the largest stable η."""
    label = next(iter(axis.groups))
    dominant, bulk, arms = plane_scales(axis)
    maps = ("loss_ratio", _PANELS[0][1]), ("speed_up", "speed-up over SGD, steps")
    maps = [m for m in (*maps, ("stable_rate", _PANELS[2][1])) if _measured(axis, m[0])]
    figure, panels = new_figure(1, len(maps), (5.2 * len(maps), 4.2))
    for axes, (key, name) in zip(panels, maps):
        values = np.full((len(bulk), len(dominant)), np.nan)
        for (a, b), arm in arms.items():
            spread = axis.spread(label, arm, key)
            values[bulk.index(b), dominant.index(a)] = spread.mean
        shown = np.where(values > 0, values, np.nan)  # on a log scale
        image = axes.imshow(shown, origin="lower", cmap="cividis", norm="log")
        _annotate(axes, axis, label, arms, dominant, bulk, values)
        axes.set_xticks(range(len(dominant)), [f"{a:g}" for a in dominant])
        axes.set_yticks(range(len(bulk)), [f"{b:g}" for b in bulk])
        axes.set_xlabel("a, factor of the dominant part")
        axes.set_ylabel("b, factor of the bulk part")
        axes.grid(visible=False)
        axes.set_title(name, loc="left")
        figure.colorbar(image, ax=axes, label=name)
    return figure


def _annotate(axes, axis, label, arms, dominant, bulk, values):
    logs = np.log10(values[values > 0])
    middle = (logs.min() + logs.max()) / 2 if logs.size else 0
    for (a, b), arm in arms.items():
        value = values[bulk.index(b), dominant.index(a)]
        diverged = np.nansum(axis.over_seeds(label, arm, "diverged"))
        known = math.isfinite(value)
        text = f"{value:.2g}" if known else "–"
        if diverged and axes.get_subplotspec().is_first_col():
            text = f"{text}\n({diverged:.0f} ×)" if known else "×"
        dark = value > 0 and math.log10(value) < middle
        color = "white" if dark else INK  # NaN compares as False
        place = (dominant.index(a), bulk.index(b))
        axes.text(*place, text, ha="center", va="center", color=color, fontsize=8)


@matplotlib.rc_context(STYLE)
def training_figure(axis: Axis) -> Figure:
    """Training loss, sharpness and alignment after the fork, over the seeds."""
    figure, panels = new_figure(1, 3, (10.4, 3.7))
    styles = _styles(axis)
    for axes, (key, name, log, reference) in zip(
        panels,
        (
            ("train_loss", "training loss", True, None),
            ("sharpness_ratio", r"sharpness $\eta\lambda_1$", False, 2.0),
            ("alignment_gradient", r"$\chi_k$ of the full gradient", False, None),
        ),
    ):
        for arm, style in styles.items():
            _band(axes, axis.cells, arm, key, style)
        _finish(axes, name, log, _threshold(axis, key, reference))
        axes.set_xlabel("step")
    _legend(figure, [(_arm_label(axis, arm), s) for arm, s in styles.items()])
    return figure


@matplotlib.rc_context(STYLE)
def energy_figure(axis: Axis) -> Figure:
    """Trace and Frobenius shares of H, G and F in the dominant subspace, along SGD."""
    groups = {
        label: cells
        for label, cells in axis.groups.items()
        if any(cell.run for cell in cells)
    }
    figure, panels = new_figure(2, len(groups), (10.4, 6.0))
    rows = (("trace_share", "trace share"), ("frobenius_share", "Frobenius share"))
    for column, (label, cells) in enumerate(groups.items()):
        for row, (share, name) in enumerate(rows):
            axes = panels[row * len(groups) + column]
            for operator, (_, style) in OPERATORS.items():
                if share == "trace_share" and not has_trace(cells, operator):
                    continue  # a share of nothing
                _band(axes, cells, SGD, f"{operator}/{share}", style)
            axes.set_ylim(-0.1 if share == "trace_share" else 0, 1.1)
            axes.axhline(1, color=MUTED, linewidth=0.7)
            axes.set_ylabel(name if column == 0 else "")
        field = f"{_field_label(axis)} " if axis.values else ""
        panels[column].set_title(plain(field + label), loc="left")
        panels[len(groups) + column].set_xlabel("step")
    _legend(figure, [*OPERATORS.values()])
    return figure


def has_trace(cells, operator) -> bool:
    """Whether a trace stands out of its own standard error, in most measurements."""
    series = lambda key: np.concatenate(
        [c.run.series(SGD, f"{operator}/{key}") for c in cells if SGD in c.arms]
    )
    trace, error = series("trace"), series("trace_error")
    known = np.isfinite(trace) & np.isfinite(error)
    return (
        np.mean(np.abs(trace[known]) > 3 * error[known]) > 0.5 if any(known) else True
    )


def path_points(axis: Axis) -> dict[str, list[tuple[float, str]]]:
    """For each family, α and arm of its points, ends included, by α."""
    scales = _scales(axis)
    points = {}
    for path in PATHS:
        found = [
            (alpha, arm)
            for arm, (a, b) in scales.items()
            for alpha in dict.fromkeys((a, b))
            if 0 <= alpha <= 1 and path_scales(path, alpha) == (a, b)
        ]
        points[path] = sorted(found)
    return points


def plane_scales(axis: Axis):
    """The values of a and of b in a grid of arms, and the arms by (a, b).

    The arms named `scales(a,b)` span the grid; SGD, Dom-SGD and Bulk-SGD are points of
    it where they lie on it.
    """
    scales = _scales(axis)
    named = [point for arm, point in scales.items() if arm.startswith("scales")]
    dominant, bulk = (sorted({point[i] for point in named}) for i in (0, 1))
    arms = {
        (a, b): arm for arm, (a, b) in scales.items() if a in dominant and b in bulk
    }
    return dominant, bulk, arms


def _scales(axis):
    return {
        arm: cell.run.summary(arm).scales
        for cell in axis.cells
        if cell.run
        for arm in cell.arms
    }


def _styles(axis):
    summaries = {
        arm: cell.run.summary(arm)
        for cell in reversed(axis.cells)
        if cell.run
        for arm in cell.arms
    }
    return arm_styles([summaries[arm] for arm in axis.arms])


def _arm_label(axis, arm):
    runs = [cell.run for cell in axis.cells if arm in cell.arms]
    return plain(runs[0].summary(arm).label)


def _tick_labels(axis):
    """The settings, without the names of fields where all of them set the same ones."""
    labels = list(axis.groups)
    if not all(len(label.split(", ")) == len(axis.fields) for label in labels):
        return labels
    names = [f"{short_name(field)} " for field in axis.fields]
    bare = lambda part, name: part.removeprefix(name)
    return [", ".join(map(bare, label.split(", "), names)) for label in labels]


def _field_label(axis):
    return ", ".join(map(short_name, axis.fields))


def _threshold(axis, key, reference):
    """The line of reference of a panel; of ηλ₁ the threshold that all cells share."""
    if key != "sharpness_ratio":
        return reference
    found = {cell.run.stability for cell in axis.cells if cell.run}
    threshold = found.pop() if len(found) == 1 else math.nan
    return threshold if math.isfinite(threshold) else None


def _measured(axis, key):
    return any(
        math.isfinite(value)
        for label in axis.groups
        for arm in axis.arms
        for value in axis.over_seeds(label, arm, key)
    )


def _draw(axes, places, spreads, style, *, log, joined=True):
    """Points with bars; settings that are no numbers are not joined by lines."""
    means = np.array([spread.mean for spread in spreads])
    bars = np.array([spread.deviation for spread in spreads])
    if log:  # as far up as down on the axis
        bars = np.abs(means * np.expm1(np.outer([-1, 1], bars / means)))
    lines = {"linewidth": min(style.linewidth, 1.7)}
    lines |= {} if joined else {"linestyle": "none"}
    axes.errorbar(
        places,
        means,
        bars,
        marker="o",
        markersize=4,
        capsize=2,
        elinewidth=1,
        **vars(style) | lines,
    )


def _band(axes: Axes, cells, arm, key, style):
    """Mean and standard deviation over the runs of those steps that all logged."""
    tables = []
    for cell in cells:
        if arm in cell.arms:
            values = cell.run.series(arm, key)
            known = np.isfinite(values)
            tables.append(dict(zip(cell.run.steps(arm)[known], values[known])))
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
        axes.fill_between(steps, low, high, color=style.color, alpha=0.18, linewidth=0)


def _finish(axes, name, log, reference):
    if log:
        log_axis(axes)
    if reference is not None:
        axes.axhline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_ylabel(name)


def _legend(figure, entries):
    handles = [Line2D([], [], label=label, **vars(style)) for label, style in entries]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
