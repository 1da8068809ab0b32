"""Figures over the scales (a, b) of the arms: families of them, and the plane."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report import study_panels
from bulk_sgd.lab.report.formatting import exact, number
from bulk_sgd.lab.report.study import Axis
from bulk_sgd.lab.report.style import INK, STYLE, LineStyle, new_figure, plain_ticks
from bulk_sgd.transforms.aliases import PATHS, path_scales

_PATHS = {
    "bulk": ("bulk path (α, 1)", LineStyle("#0072B2")),
    "dom": ("dom path (1, α)", LineStyle("#D55E00", (0, (5, 1.6)))),
    "cross": ("cross path (α, 1 − α)", LineStyle("#009E73", (0, (1.2, 1.4)))),
}


@matplotlib.rc_context(STYLE)
def family_figure(axis: Axis) -> Figure:
    """Final loss, sharpness and stable rate along the families of scales (a, b)."""
    shown = study_panels.measured_panels(axis)
    figure, panels = new_figure(1, len(shown), (10.4, 3.7))
    label = next(iter(axis.groups))
    for axes, panel in zip(panels, shown):
        key, _, log, _ = panel
        for path, points in path_points(axis).items():
            spreads = [axis.spread(label, arm, key, log=log) for _, arm in points]
            places = [alpha for alpha, _ in points]
            study_panels.draw_spreads(axes, places, spreads, _PATHS[path][1], log)
        study_panels.finish_panel(axes, axis, panel)
        axes.set_xlabel("α")
    study_panels.legend(figure, [*_PATHS.values()])
    return figure


@matplotlib.rc_context(STYLE)
def plane_figure(axis: Axis) -> Figure:
    """Maps over the scales (a, b): how far the loss fell, and the largest stable η."""
    label = next(iter(axis.groups))
    dominant, bulk, arms = plane_scales(axis)
    places = {arm: (bulk.index(b), dominant.index(a)) for (a, b), arm in arms.items()}
    loss, _, rate = (panel[:2] for panel in study_panels.PANELS)
    maps = loss, ("speed_up", "speed-up over SGD, steps"), rate
    maps = [(key, name) for key, name in maps if axis.measured(key)]
    figure, panels = new_figure(1, len(maps), (10.4, 0.9 + 8.4 / max(len(maps), 2)))
    for axes, (key, name) in zip(panels, maps):
        values = np.full((len(bulk), len(dominant)), np.nan)
        for arm, place in places.items():
            values[place] = axis.spread(label, arm, key).mean
        shown = np.where(values > 0, values, np.nan)  # on a log scale
        image = axes.imshow(shown, origin="lower", cmap="cividis", norm="log")
        _annotate(axes, axis, label, places, values)
        axes.set_xticks(range(len(dominant)), [exact(a) for a in dominant])
        axes.set_yticks(range(len(bulk)), [exact(b) for b in bulk])
        axes.set_xlabel("a, factor of the dominant part")
        axes.set_ylabel("b, factor of the bulk part")
        axes.grid(visible=False)
        axes.set_title(name, loc="left")
        plain_ticks(figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03).ax)
    return figure


def _annotate(axes, axis, label, places, values):
    logs = np.log10(values[values > 0])
    middle = (logs.min() + logs.max()) / 2 if logs.size else 0
    for arm, (y, x) in places.items():
        value = values[y, x]
        diverged = np.nansum(axis.over_seeds(label, arm, "diverged"))
        known = math.isfinite(value)
        text = number(value, 2)
        if diverged and axes.get_subplotspec().is_first_col():
            text = f"{text}\n({diverged:.0f} ×)" if known else "×"
        dark = value > 0 and math.log10(value) < middle
        color = "white" if dark else INK  # NaN compares as False
        axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)


def path_points(axis: Axis) -> dict[str, list[tuple[float, str]]]:
    """For each family, α and arm of its points, ends included, by α."""
    scales = {arm: s.scales for arm, s in axis.summaries.items()}
    points = [(alpha, arm) for arm, pair in scales.items() for alpha in {*pair}]
    return {
        path: sorted(
            (alpha, arm)
            for alpha, arm in points
            if 0 <= alpha <= 1 and path_scales(path, alpha) == scales[arm]
        )
        for path in PATHS
    }


def plane_scales(axis: Axis):
    """The values of a and of b in a grid of arms, and the arms by (a, b).

    The arms named `scales(a,b)` span the grid. Other arms count where they lie on it.
    """
    scales = {arm: s.scales for arm, s in axis.summaries.items()}
    named = [point for arm, point in scales.items() if arm.startswith("scales")]
    dominant, bulk = (sorted({point[i] for point in named}) for i in (0, 1))
    on_grid = lambda a, b: a in dominant and b in bulk
    arms = {point: arm for arm, point in scales.items() if on_grid(*point)}
    return dominant, bulk, arms
