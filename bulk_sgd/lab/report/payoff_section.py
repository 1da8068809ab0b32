"""Tuned sweeps side by side: what each row costs, by inner optimizer and by task."""

import math
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.lab.report import page, payoff, style
from bulk_sgd.lab.report.formatting import exact
from bulk_sgd.lab.report.payoff import Rival
from bulk_sgd.lab.report.study import Axis
from bulk_sgd.lab.report.study_panels import legend
from bulk_sgd.lab.report.tuned_section import middle

# By column: the key of a cost.
_COLUMNS = {"steps": "steps", "seconds": "seconds", "test loss there": "test_share"}
_CAPTION = (
    "Steps and seconds until the last loss of the plain optimizer, over its own; "
    "median over seeds, in a bar from the lowest to the highest. Left of the dashed "
    "line, a row saves. An arrow: half the seeds or more never get there."
)


class Sweep(NamedTuple):
    """A tuned sweep: its name, its inner optimizer, and the rows compared."""

    name: str
    optimizer: str
    rivals: list[Rival]

    def shares(self, rival: Rival, key: str) -> list[float]:
        """One number per seed, over the tuned optimizer's own."""
        return [cost[key] for cost in rival.costs]


def sweeps(axes: list[Axis]) -> list[Sweep]:
    """The tuned sweeps that compare something, those of one optimizer together."""
    found = [Sweep(x.name, _optimizer(x), payoff.rivals(x)) for x in axes if x.tune]
    found = [sweep for sweep in found if sweep.rivals]
    places = {
        name: i for i, name in enumerate(dict.fromkeys(x.optimizer for x in found))
    }
    return sorted(found, key=lambda sweep: places[sweep.optimizer])


def section(found: list[Sweep], save) -> str:
    """Figure and table of several sweeps, as HTML; `save` keeps a figure by name."""
    image = save(payoff_figure(found), "payoff")
    rule = """<p>Every row has its own best value. The median over sweeps of one inner
optimizer is over the medians over seeds.</p>
"""
    figure = page.figure("Does it pay?", _CAPTION, _CAPTION, image)
    return f"<h2>Does it pay?</h2>\n{rule}{figure}{_table(found)}"


def medians(found: list[Sweep]) -> list[dict]:
    """By optimizer and row: over how many sweeps, and the median of each column."""
    by_row: dict[tuple, list] = {}
    for sweep in found:
        for rival in sweep.rivals:
            shares = {k: _median(sweep.shares(rival, k)) for k in _COLUMNS.values()}
            by_row.setdefault((sweep.optimizer, rival.row.name), []).append(shares)
    return [
        {"optimizer": optimizer, "row": row, "sweeps": len(costs)}
        | {key: _median([cost[key] for cost in costs]) for key in _COLUMNS.values()}
        for (optimizer, row), costs in by_row.items()
    ]


@matplotlib.rc_context(style.STYLE)
def payoff_figure(found: list[Sweep]) -> Figure:
    """The shares of steps and of seconds, a group of rows for each sweep."""
    names = list(dict.fromkeys(r.row.name for sweep in found for r in sweep.rivals))
    styles = style.series_styles(names)
    # Each sweep takes a line per row, and one between it and the next.
    tops = np.cumsum([0, *(len(sweep.rivals) + 1 for sweep in found)])
    figure, panels = style.new_figure(1, 2, (10.4, 1.2 + 0.2 * tops[-1]), share="row")
    for axes, unit in zip(panels, ("steps", "seconds")):
        for top, sweep in zip(tops, found):
            for line, rival in enumerate(sweep.rivals, 1):
                color = styles[rival.row.name].color
                _draw(axes, sweep.shares(rival, unit), top + line, color)
        axes.axvline(1, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        for top in tops[1:-1]:
            axes.axhline(top, color=style.MUTED, linewidth=0.4)
        axes.set_xlabel(f"{unit} to the plain optimizer's last loss ÷ its own")
        axes.grid(axis="y", visible=False)
        _log_x(axes)
    labels = [style.plain(style.shorten(sweep.name)) for sweep in found]
    panels[0].set_yticks((tops[:-1] + tops[1:]) / 2, labels)
    panels[0].set_ylim(tops[-1], 0)
    legend(figure, [(style.plain(name), styles[name]) for name in names])
    return figure


def _draw(axes, shares, height, color):
    """Median and range; at the right rim if the median is infinite."""
    middle = _median(shares)
    if math.isnan(middle):
        return
    if math.isinf(middle):
        rim = axes.get_yaxis_transform()
        axes.plot(1, height, ">", color=color, ms=6, transform=rim, clip_on=False)
        return
    finite = [x for x in shares if math.isfinite(x)]
    axes.plot([min(finite), max(finite)], [height] * 2, color=color, linewidth=1.7)
    axes.plot(middle, height, "o", color=color, ms=5)


def _log_x(axes):
    """A log axis that holds 1 and has plain numbers at powers of two."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.5), max(high, 2)
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    ticks = [2.0**power for power in powers if low <= 2.0**power <= high]
    axes.set_xticks(ticks, [*map(exact, ticks)])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def _table(found):
    heads = ["row", "sweep", "best value", *_COLUMNS]
    known, shown, before = (
        {(m["optimizer"], m["row"]): m for m in medians(found)},
        [],
        "",
    )
    for (optimizer, name), median in known.items():
        if optimizer != before:
            shown.append([optimizer])
            before = optimizer
        for sweep in found:
            for rival in sweep.rivals:
                if (sweep.optimizer, rival.row.name) == (optimizer, name):
                    edge = " (at the edge)" * rival.row.at_edge
                    shares = [sweep.shares(rival, key) for key in _COLUMNS.values()]
                    best = exact(rival.row.best) + edge
                    shown.append([name, sweep.name, best, *map(middle, shares)])
        if median["sweeps"] > 1:
            over = f"median of {median['sweeps']} sweeps"
            values = [middle([median[key]]) for key in _COLUMNS.values()]
            shown.append([name, over, "", *values])
    caption = (
        "Steps and seconds to the plain optimizer's last loss, and the test loss at "
        "that point, all over the plain optimizer's own; median over seeds (lowest – "
        "highest)."
    )
    table = page.table("Does it pay?", heads, shown)
    return f'{table}<p class="facts">{page.text(caption)}</p>\n'


def _optimizer(axis):
    """The inner optimizer in the words of the config."""
    infos = [cell.run.info for cell in axis.cells if cell.run]
    configs = [info["config"] for info in infos if info.get("config")]
    fields = next((config.get("optimizer", {}) for config in configs), {})
    name, momentum = fields.get("name", "optimizer"), fields.get("momentum")
    return f"{name}, momentum {exact(momentum)}" if momentum else name


def _median(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan
