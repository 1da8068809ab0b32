"""Figures of the next step and of the eigenvectors, where a run measured them."""

import dataclasses

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report import style
from bulk_sgd.lab.report.results import RunResults
from bulk_sgd.lab.report.run_figures import calm, panel, run_styles
from bulk_sgd.lab.training.measures import RANKS

PROFILE = "rank_profile/"


@matplotlib.rc_context(style.STYLE)
def change_figure(run: RunResults) -> Figure:
    """Measured and predicted changes of the loss by the parts of the next update."""
    figure, panels = style.new_figure(1, 2, (10.4, 4))
    for axes, part in zip(panels, ("dominant", "bulk")):
        key = f"step/measured_{part}"
        values = calm(run, lambda arm, key=key: run.series(arm, key))
        if values.any():
            style.symlog_axis(axes, np.median(np.abs(values[values != 0])))
        axes.axhline(0, color=style.MUTED, linewidth=0.7)
        _draw_pale(axes, run, f"step/predicted_{part}")
        panel(axes, run, key, f"change of the loss, {part} part")
    return figure


@matplotlib.rc_context(style.STYLE)
def step_sharpness_figure(run: RunResults) -> Figure:
    """Sharpness along steps: critical, directional, and over mini-batches."""
    lines = {
        "step/critical_sharpness": ("step/sharpness_gradient", "critical sharpness"),
        "step/sharpness_update": (None, "sharpness of the update"),
        "batch_sharpness_update": ("batch_sharpness", "batch sharpness of updates"),
    }
    figure, panels = style.new_figure(len(lines), 1, (10.4, 9))
    for axes, (key, (pale, label)) in zip(panels, lines.items()):
        values = calm(run, lambda arm, key=key: run.series(arm, key))
        if values.size:
            style.log_or_symlog(axes, values)
        _draw_pale(axes, run, pale)
        # By its definition a step raises the loss above 2/η, for every optimizer.
        own = 2 if key == "step/critical_sharpness" else run.stability
        _draw_threshold(axes, run, own, (0, (4, 2)))
        if key.startswith("batch"):
            small = run.info.get("batch_stability_threshold") or np.nan
            _draw_threshold(axes, run, small, (0, (1, 1.5)))
        panel(axes, run, key, label)
    return figure


@matplotlib.rc_context(style.STYLE)
def eigenvector_figure(run: RunResults) -> Figure:
    """How far the subspace turns between rows, and on how few parameters it lives."""
    figure, (left, right) = style.new_figure(1, 2, (10.4, 4))
    run = _with_means(run, "displacement", "localization")
    _draw_pale(left, run, "displacement")
    label = "displacement of the subspace"
    panel(left, run, "displacement_subspace", label, 0)
    style.log_axis(right)
    right.axhline(1, color=style.MUTED, linewidth=0.7)
    panel(right, run, "localization", "localization of the eigenvectors")
    return figure


@matplotlib.rc_context(style.STYLE)
def rank_figure(run: RunResults) -> Figure:
    """How much of the eigenvectors is within low ranks, matrix by matrix."""
    arm, row = profiled(run)
    names = [key.removeprefix(PROFILE) for key in row if key.startswith(PROFILE)]
    figure, (axes,) = style.new_figure(1, 1, (10.4, 1.4 + 0.3 * len(names)))
    shares = np.array([row[PROFILE + name] for name in names], float)
    ranks = RANKS[: shares.shape[1]]  # early versions had fewer
    shades = run_styles(run)[arm].shades(len(ranks))
    for values, shade in zip(100 * shares.T, shades[::-1]):
        axes.plot(values, range(len(names)), "o", color=shade)
    axes.set_yticks(range(len(names)), map(style.plain, names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("energy of the eigenvectors within the rank (%)")
    style.legend(figure, [f"rank {rank}" for rank in ranks], axes.lines)
    return figure


def profiled(run: RunResults):
    """The first arm with a rank profile, and its last row that has one."""
    for arm in run.arms:
        for row in reversed(run.rows.get(arm, [])):
            if any(key.startswith(PROFILE) for key in row):
                return arm, row
    return None


def _with_means(run, *keys):
    """The run with lists replaced by the means of their numbers."""

    def mean(values):
        known = [x for x in values or [] if x is not None]
        return float(np.mean(known)) if known else None

    rows = {
        arm: [row | {key: mean(row.get(key)) for key in keys} for row in its_rows]
        for arm, its_rows in run.rows.items()
    }
    return dataclasses.replace(run, rows=rows)


def _draw_pale(axes, run, key):
    """Draws a column as wide pale lines, under the column to compare it with."""
    for arm, line in run_styles(run).items():
        look = {"color": line.color, "linewidth": 5, "alpha": 0.25}
        axes.plot(*run.logged(arm, key), **look)


def _draw_threshold(axes, run, constant, dashes):
    """Draws a constant divided by the learning rate, in the colour of text."""
    for arm in run.arms:
        rates = run.rates(arm)
        known = rates > 0
        thresholds = constant / rates[known]
        look = {"color": style.INK, "linewidth": 0.9, "linestyle": dashes}
        axes.plot(run.steps(arm)[known], thresholds, **look)
