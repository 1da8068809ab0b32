"""What the report of a tuned sweep says: its figures, its table, its numbers."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report import page, style, tuned
from bulk_sgd.lab.report.formatting import exact, number
from bulk_sgd.lab.report.study import Axis, short_name
from bulk_sgd.lab.report.study_panels import legend
from bulk_sgd.lab.report.tuned import Row

_LOSS = {"train_loss": "training loss", "test_loss": "test loss"}


def section(axis: Axis, rows: list[Row], save) -> str:
    """Figures and table of a tuned sweep, as HTML; `save` keeps a figure by name."""
    if not any(row.cells for row in rows):
        return page.note("No row has a value that trained, so nothing is compared.")
    name, loss, mean = short_name(axis.tune.field), _LOSS[axis.tune.by], _mean(axis)
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
    rates = (
        f"The {loss} at the end for each {name}; median over seeds, in a band from the "
        "lowest to the highest. The ring marks the best value. A value has no point if "
        "half the seeds diverged, or if its loss is above ten times every row's best."
    )
    return "".join(
        [
            f"<p>{page.text(rule)}</p>\n",
            *notes,
            _comparison(axis, rows, save),
            page.figure(
                "Tuning", rates, rates, save(rate_figure(axis, rows), "tuning")
            ),
        ]
    )


def _comparison(axis, rows, save):
    """The race and the table of costs, or why there are none."""
    plain, name = tuned.reference(axis, rows), short_name(axis.tune.field)
    if plain is None:
        named, why = axis.tune.reference, f"has no {name} whose seeds have all ended"
        if any(tuned.is_named(axis, row) for row in rows):
            why = f"diverged at every {name} that has ended"
        return page.note(f"The reference, {named}, {why}, so nothing is compared.")
    race = (
        f"Each row at its best {name}: median over seeds, in a band from the lowest to "
        "the highest. A seed that diverged is infinite from there on. Dashed: the last "
        f"{_LOSS[axis.tune.by]} of {plain.name}{_mean(axis)}. "
        "Seconds leave out curvature that is only measured."
    )
    image = save(race_figure(axis, rows), "race")
    figure = page.figure("Tuned rows", race, race, image)
    return figure + _table(axis, rows, plain)


def _mean(axis):
    mean = f", a mean of the last {axis.tune.rows} rows of metrics"
    return mean * (axis.tune.rows > 1)


@matplotlib.rc_context(style.STYLE)
def race_figure(axis: Axis, rows: list[Row]) -> Figure:
    """The loss of each row at its best value, over steps and over seconds."""
    figure, panels = style.new_figure(1, 2, (10.4, 4.2), share="row")
    plain, styles = tuned.reference(axis, rows), _styles(axis, rows)
    end = float(np.median(plain.ends))
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
    most = 10 * max(np.median(row.ends) for row in rows if row.cells)
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
            axes.plot(row.best, np.median(row.ends), "o", **ring)
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
    styles = style.series_styles([row.name for row in rows if row is not plain])
    return styles | ({plain.name: style.LineStyle(style.INK)} if plain else {})


def _draw(axes, curves, unit, by, line):
    """Median and range over seeds, against the mean steps or seconds.

    A seed is infinite after its last row, where it diverged.
    """
    if not curves:
        return
    steps = sorted({step for curve in curves for step in curve.steps})
    along = lambda curve, values: np.interp(steps, curve.steps, values, right=math.inf)
    losses = np.array([along(curve, getattr(curve, by)) for curve in curves])
    losses[np.isnan(losses)] = math.inf
    known = np.isfinite(losses)
    whole = [curve for curve in curves if curve.steps[-1] == steps[-1]]
    places = np.mean([along(curve, getattr(curve, unit)) for curve in whole], axis=0)
    axes.plot(places, np.median(losses, axis=0), **vars(line))
    band = {"color": line.color, "alpha": 0.15, "linewidth": 0}
    high = np.max(losses, axis=0, where=known, initial=0)
    axes.fill_between(places, losses.min(axis=0), high, known.any(axis=0), **band)


def _table(axis, rows, plain):
    name, loss = short_name(axis.tune.field), _LOSS[axis.tune.by]
    every = [tuned.costs(axis, row, plain) for row in rows]
    counts = any(math.isfinite(cost["matvecs"]) for costs in every for cost in costs)
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
    for row, costs in zip(rows, every):
        best = "all diverged" if row.best is None else exact(row.best)
        values = [
            middle([x[key] for x in costs], "diverged" if key == "end" else "never")
            for key in heads.values()
            if key
        ]
        reached = f"{sum(math.isfinite(c['steps']) for c in costs)} of {len(costs)}"
        if not tuned.alike(row, plain):
            reached = "another loss or other data"
        edge = " (at the edge)" if row.cells and row.at_edge else ""
        shown.append([row.name, best + edge, *values, reached])
    colors = [styles[row.name].color for row in rows]
    caption = (
        f"Steps, seconds and matvecs from the first step until the last {loss} of "
        f"{plain.name}, without curvature that is only measured; median over seeds "
        "(lowest – highest). A seed that diverged never reaches it."
    )
    table = page.table("Tuned rows", list(heads), shown, colors)
    return f'{table}<p class="facts">{page.text(caption)}</p>\n'


def middle(values: list[float], infinite: str = "never") -> str:
    """Median and range of numbers, with a word for infinite ones."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    show = lambda value: number(value) if math.isfinite(value) else infinite
    median, low, high = np.median(known), min(known), max(known)
    if low == high:
        return show(median)
    spread = f"({show(low)} – {show(high)})".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{show(median)} {spread}"
