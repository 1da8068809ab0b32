"""What the report of a tuned sweep says: its figures, its table, its numbers."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.files import metrics
from bulk_sgd.lab.report import page, style, tuned
from bulk_sgd.lab.report.formatting import exact, number
from bulk_sgd.lab.report.study import Axis, short_name
from bulk_sgd.lab.report.study_panels import legend
from bulk_sgd.lab.report.tuned import Row

_LOSS = {"train_loss": "training loss", "test_loss": "test loss"}


def section(axis: Axis, rows: list[Row], save) -> str:
    """Figures and table of a tuned sweep, as HTML; `save` keeps a figure by name."""
    plain = tuned.reference(axis, rows)
    if plain is None:
        return page.note("No row has a value that trained, so nothing is compared.")
    name, loss = short_name(axis.tune.field), _LOSS[axis.tune.by]
    mean = f", a mean of the last {axis.tune.rows} rows of metrics"
    mean *= axis.tune.rows > 1
    rule = (
        f"Each row has the {name} that gives it the lowest {loss} at the end"
        f"{mean}, as a median over seeds. The loss of a run "
        "that diverged is infinite. A value competes once all its seeds have ended."
    )
    notes = [
        page.note(
            f"{row.name}: the best {name}, {exact(row.best)}, is at the edge of its "
            "grid; a better one may lie beyond."
        )
        for row in rows
        if row.cells and row.at_edge
    ]
    race = (
        f"Each row at its best {name}: median over seeds, in a band from the lowest to "
        f"the highest. Dashed: the last {loss} of {plain.name}{mean}. "
        "Seconds leave out curvature that is only measured."
    )
    rates = (
        f"The {loss} at the end for each {name}; median over seeds, in a band from the "
        "lowest to the highest. The ring marks the best value. A value has no point if "
        "half the seeds diverged, or if its loss is above ten times every row's best."
    )
    return "".join(
        [
            f"<p>{page.text(rule)}</p>\n",
            *notes,
            page.figure(
                "Tuned rows", race, race, save(race_figure(axis, rows), "race")
            ),
            _table(axis, rows, plain),
            page.figure(
                "Tuning", rates, rates, save(rate_figure(axis, rows), "tuning")
            ),
        ]
    )


def numbers(axis: Axis, rows: list[Row]) -> list[dict]:
    """The rows and their costs for each seed, for programs to read."""
    plain = tuned.reference(axis, rows)
    return metrics.plain(
        [
            {
                "row": row.name,
                "best": row.best,
                "at_edge": row.at_edge,
                "losses": {f"{value:g}": found for value, found in row.losses.items()},
                "costs": tuned.costs(axis, row, plain) if row.cells else [],
            }
            for row in rows
        ]
    )


@matplotlib.rc_context(style.STYLE)
def race_figure(axis: Axis, rows: list[Row]) -> Figure:
    """The loss of each row at its best value, over steps and over seconds."""
    figure, panels = style.new_figure(1, 2, (10.4, 4.2), share="row")
    plain, styles = tuned.reference(axis, rows), _styles(axis, rows)
    end = float(np.median(plain.losses[plain.best]))
    for axes, unit in zip(panels, ("steps", "seconds")):
        for row in rows:
            curves = [tuned.Curve.of(cell, row.arm) for cell in row.cells]
            _draw(axes, curves, unit, axis.tune.by, styles[row.name])
        dashed = {"color": style.MUTED, "linewidth": 0.9, "linestyle": (0, (4, 2))}
        axes.axhline(end, **dashed)
        axes.set_xlabel({"steps": "step"}.get(unit, unit))
    style.log_axis(panels[0])
    panels[0].set_ylabel(_LOSS[axis.tune.by])
    legend(figure, [(style.plain(row.name), styles[row.name]) for row in rows])
    return figure


@matplotlib.rc_context(style.STYLE)
def rate_figure(axis: Axis, rows: list[Row]) -> Figure:
    """The last loss of each row against the tuned field."""
    figure, (axes,) = style.new_figure(1, 1, (10.4, 4.2))
    styles = _styles(axis, rows)
    most = 10 * max(np.median(row.losses[row.best]) for row in rows if row.cells)
    for row in rows:
        line, values = vars(styles[row.name]), sorted(row.losses)
        found = [np.array(row.losses[value]) for value in values]
        middle = np.array([np.median(x) for x in found])
        shown = np.isfinite(middle) & (middle <= most)
        axes.plot(np.array(values)[shown], middle[shown], marker="o", ms=4, **line)
        low = np.array([x.min() for x in found])[shown]
        high = np.array([np.max(x[np.isfinite(x)], initial=x.min()) for x in found])
        band = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(np.array(values)[shown], low, high[shown], **band)
        if row.best is not None:
            ring = {"mfc": "none", "mec": line["color"], "mew": 1.5, "ms": 10}
            axes.plot(row.best, np.median(row.losses[row.best]), "o", **ring)
    axes.set_xscale("log")
    values = sorted({value for row in rows for value in row.losses})
    axes.set_xticks(values, [*map(exact, values)])
    axes.set_xticks([], minor=True)
    style.log_axis(axes)
    medians = np.array([np.median(x) for row in rows for x in row.losses.values()])
    medians = medians[medians <= most]
    axes.set_ylim(medians.min() / 1.3, medians.max() * 1.3)
    axes.set_xlabel(style.plain(short_name(axis.tune.field)))
    axes.set_ylabel(f"{_LOSS[axis.tune.by]} at the end")
    legend(figure, [(style.plain(row.name), styles[row.name]) for row in rows])
    return figure


def _styles(axis, rows):
    """One style per row: its arm's, if no two rows have the same arm."""
    arms = [row.arm for row in rows]
    if len({*arms}) == len(arms):
        styles = style.arm_styles([axis.summaries[arm] for arm in arms])
        return {row.name: styles[row.arm] for row in rows}
    plain = tuned.reference(axis, rows)
    others = [row.name for row in rows if row is not plain]
    return style.series_styles(others) | {plain.name: style.LineStyle(style.INK)}


def _draw(axes, curves, unit, by, line):
    """Median and range over seeds, against their mean steps or seconds."""
    if not curves:
        return
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    pick = lambda curve, values: values[np.isin(curve.steps, steps)]
    losses = np.array([pick(curve, getattr(curve, by)) for curve in curves])
    places = np.mean([pick(curve, getattr(curve, unit)) for curve in curves], axis=0)
    axes.plot(places, np.median(losses, axis=0), **vars(line))
    band = {"color": line.color, "alpha": 0.15, "linewidth": 0}
    axes.fill_between(places, losses.min(axis=0), losses.max(axis=0), **band)


def _table(axis, rows, plain):
    name, loss = short_name(axis.tune.field), _LOSS[axis.tune.by]
    counts = any(
        math.isfinite(c["matvecs"]) for r in rows for c in _costs(axis, r, plain)
    )
    heads = {
        "row": None,
        f"best {name}": None,
        f"{loss} at the end": "end",
        f"steps ÷ {plain.name}'s": "steps",
        f"seconds ÷ {plain.name}'s": "seconds",
        f"matvecs ÷ {plain.name}'s" if counts else "matvecs": (
            "matvecs" if counts else "own_matvecs"
        ),
        "test loss there": "test_loss",
        "seeds that reach it": None,
    }
    styles, shown = _styles(axis, rows), []
    for row in rows:
        costs = _costs(axis, row, plain)
        best = "all diverged" if row.best is None else exact(row.best)
        values = [middle([c[key] for c in costs]) for key in heads.values() if key]
        reached = f"{sum(math.isfinite(c['steps']) for c in costs)} of {len(costs)}"
        if row.cells and not tuned.alike(row, plain):
            reached = "another loss or other data"
        edge = " (at the edge)" if row.cells and row.at_edge else ""
        shown.append([row.name, best + edge, *values, reached])
    colors = [styles[row.name].color for row in rows]
    caption = (
        f"Steps, seconds and matvecs from the first step until the last {loss} of "
        f"{plain.name}, without curvature that is only measured; median over seeds "
        "(lowest – highest)."
    )
    table = page.table("Tuned rows", list(heads), shown, colors)
    return f'{table}<p class="facts">{page.text(caption)}</p>\n'


def _costs(axis, row, plain):
    return tuned.costs(axis, row, plain) if row.cells else []


def middle(values: list[float]) -> str:
    """Median and range of numbers; infinite ones are shown as never reached."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    show = lambda value: number(value) if math.isfinite(value) else "never"
    median, low, high = np.median(known), min(known), max(known)
    if low == high:
        return show(median)
    spread = f"({show(low)} – {show(high)})".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{show(median)} {spread}"
