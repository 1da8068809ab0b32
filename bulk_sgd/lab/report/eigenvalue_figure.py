"""The eigenvalues of one run, against the stability threshold of its optimizer."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report import style
from bulk_sgd.lab.report.formatting import exact, number
from bulk_sgd.lab.report.results import PREFIX, RunResults
from bulk_sgd.lab.report.run_figures import calm, limit_above, mark_fork, run_styles


@matplotlib.rc_context(style.STYLE)
def eigenvalue_figure(run: RunResults) -> Figure:
    """λ_1 … λ_k along training, a panel per arm; those of the prefix are grey."""
    tables = {arm: run.eigenvalues(arm) for arm in (PREFIX, *run.arms)}
    shown = [arm for arm in run.arms if np.isfinite(tables[arm]).any()] or [PREFIX]
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    size = 10.4, 0.9 + 2.5 * rows
    figure, panels = style.new_figure(rows, columns, size, share=True)
    for axes in panels[len(shown) :]:
        axes.remove()
    values = np.concatenate([table.ravel() for table in tables.values()])
    values = values[np.isfinite(values)]
    threshold, lines = stability_threshold(run), run_styles(run)
    readable = values.size and values.min() / 3 <= threshold <= values.max() * 3
    dashed = {"color": style.INK, "linewidth": 0.9, "linestyle": (0, (4, 2))}
    for axes, arm in zip(panels, shown):
        for name in dict.fromkeys((PREFIX, arm)):
            _draw(axes, run.steps(name), tables[name], lines[name])
        if readable:
            axes.axhline(threshold, **dashed)
        elif math.isnan(threshold):
            rates = run.rates(arm)
            known = rates > 0
            steps, thresholds = run.steps(arm)[known], run.stability / rates[known]
            axes.plot(steps, thresholds, **dashed)
        mark_fork(axes, run, text="")
        if arm != PREFIX:
            summary = run.summary(arm)
            name, scales = summary.label, summary.formula.rpartition("= ")[2]
            told = scales and name.endswith(scales)  # in the name
            title = style.shorten(name if told else f"{name}   {summary.formula}", 37)
            axes.set_title(style.plain(title), loc="left")
    # All panels share their limits, final only once every panel is drawn.
    style.log_or_symlog(panels[0], values)
    limit_above(panels[0], calm(run, tables.get))
    for i, (axes, arm) in enumerate(zip(panels, shown)):
        _label(axes, tables[arm])
        if readable:
            text = rf"${exact(run.stability)}/\eta$ = {number(threshold)}"
            # On white, for lines may run under it.
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
            axes.annotate(text, (0.02, threshold), (0, 3.5), **style.OUTSIDE, bbox=box)
        # Sharing hides the ticks of a column whose last row is missing.
        is_last = i + columns >= len(shown)
        axes.xaxis.set_tick_params(labelbottom=is_last)
        axes.set_xlabel("step" * is_last)
    label = rf"eigenvalues $\lambda_1, \ldots, \lambda_{{{run.rank or 'k'}}}$"
    figure.supylabel(label, fontsize=style.STYLE["font.size"])
    if not values.size:
        style.say(panels[0], "no eigenvalues logged")
    return figure


def stability_threshold(run: RunResults) -> float:
    """c/η, above which a sharp direction is unstable; 2/η for SGD.

    NaN where the optimizer has no threshold, and where η is unknown or changes.
    """
    rates = np.concatenate([run.rates(arm) for arm in run.rows])
    rate = rates[0] if np.ptp(rates) == 0 else math.nan
    return run.stability / rate if rate > 0 else math.nan


def _draw(axes, steps, table, line):
    logged = np.isfinite(table).any(axis=1)
    for values, color in zip(table[logged].T, line.shades(table.shape[1])):
        thin = style.LineStyle(color, linewidth=1.2)
        axes.plot(steps[logged], values, **style.points(thin, logged.sum()))


def _label(axes, table):
    """Names the first and the last eigenvalue in the right margin."""
    last = table[np.isfinite(table).any(axis=1)][-1:].ravel()
    low, high = axes.get_ylim()
    for i in {0, len(last) - 1} if len(last) else ():
        if low <= last[i] <= high:
            name = rf"$\lambda_{{{i + 1}}}$"
            axes.annotate(name, (1, last[i]), (3, 0), **style.OUTSIDE, va="center")
