"""Tuned sweeps side by side: what each row costs, and medians over the sweeps."""

import itertools
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bulk_sgd.lab.from_config.unused import USED_BY
from bulk_sgd.lab.report import page, style
from bulk_sgd.lab.report.formatting import exact
from bulk_sgd.lab.report.payoff import Sweep
from bulk_sgd.lab.report.tuned_section import middle

_KEYS = "steps", "seconds", "test_share"
_HEADS = "row", "best value", "steps", "seconds", "test loss ÷ the reference's last"
_MARKERS = "os^Dv"
_CAPTION = (
    "Steps and seconds until a row reaches the reference's last loss, divided by the "
    "reference's steps and seconds. A point is the median over seeds; a bar goes from "
    "the lowest seed to the highest. Left of the dashed line, the row is cheaper. An "
    "arrow: at least half the seeds never reach the loss. A bar up to the right edge: "
    "some seeds never do."
)


def section(found: list[Sweep], save) -> str:
    """Figure and table of several sweeps, as HTML; `save` keeps a figure by name."""
    image = save(payoff_figure(found), "payoff")
    rule = """<p>A row is an arm at its best value of the tuned field. The reference is
the row that the others are compared with, mostly the inner optimizer alone. A median
over sweeps takes one number from each sweep: its median over seeds.</p>
"""
    figure = page.figure("Does it pay?", _CAPTION, _CAPTION, image)
    return f"<h2>Does it pay?</h2>\n{rule}{figure}{_table(found)}"


def medians(found: list[Sweep]) -> list[dict]:
    """For each inner optimizer and row, the medians over the sweeps that timed it.

    A sweep reaches the loss if its median over seeds does; `reached` says how many do,
    and `test_share` is over them.
    """
    by_row: dict[tuple[str, str, str], list] = {}
    for sweep in found:
        for rival in sweep.rivals:
            shares = {key: _median(rival.shares(key)) for key in _KEYS}
            if not math.isnan(shares["steps"]):
                if not math.isfinite(shares["steps"]):
                    shares["test_share"] = math.nan
                key = _optimizer(sweep), rival.row.arm, rival.name
                by_row.setdefault(key, []).append(shares)
    return [
        {"optimizer": optimizer, "row": row, "sweeps": len(shares)}
        | {"reached": sum(math.isfinite(share["steps"]) for share in shares)}
        | {key: _median([share[key] for share in shares]) for key in _KEYS}
        for (optimizer, _, row), shares in by_row.items()
    ]


@matplotlib.rc_context(style.STYLE)
def payoff_figure(found: list[Sweep]) -> Figure:
    """The shares of steps and of seconds, a group of rows for each sweep."""
    looks = _looks(found)
    # Each sweep takes a line per row, and one between it and the next.
    tops = np.cumsum([0, *(len(sweep.rivals) + 1 for sweep in found)])
    figure, panels = style.new_figure(1, 2, (10.4, 1.2 + 0.2 * tops[-1]), share="row")
    for axes, unit in zip(panels, ("steps", "seconds")):
        every = [x for s in found for rival in s.rivals for x in rival.shares(unit)]
        rim = _log_x(axes, [x for x in every if math.isfinite(x)])
        for top, sweep in zip(tops, found):
            for line, rival in enumerate(sweep.rivals, 1):
                look = looks[rival.name]
                _draw(axes, rival.shares(unit), top + line, look, rim)
        axes.axvline(1, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        for top in tops[1:-1]:
            axes.axhline(top, color=style.MUTED, linewidth=0.4)
        axes.set_xlabel(f"{unit} ÷ the reference's")
        axes.grid(axis="y", visible=False)
    names = [style.plain(sweep.axis.name[:30]) for sweep in found]
    panels[0].set_yticks((tops[:-1] + tops[1:]) / 2, names)
    panels[0].set_ylim(tops[-1], 0)
    handles = [Line2D([], [], **look) for look in looks.values()]
    style.legend(figure, [*map(style.plain, looks)], handles)
    return figure


def _looks(found):
    """Colour and marker of each row; its arm's colour, if no two rows share an arm."""
    rows = [(sweep.axis, rival) for sweep in found for rival in sweep.rivals]
    arms = {rival.name: axis.summaries[rival.row.arm] for axis, rival in rows}
    if len({arm.name for arm in arms.values()}) == len(arms):
        styles = style.arm_styles([*arms.values()])
        colors = {name: styles[arm.name].color for name, arm in arms.items()}
    else:
        colors = {name: x.color for name, x in style.series_styles([*arms]).items()}
    looks, used = {}, []
    for name, color in colors.items():
        marker = _MARKERS[used.count(color) % len(_MARKERS)]
        looks[name] = {"color": color, "marker": marker, "ms": 5, "linewidth": 1.7}
        used.append(color)
    return looks


def _draw(axes, shares, height, look, rim):
    """Median and range; what is never reached lies at the rim."""
    known = [min(share, rim) for share in shares if not math.isnan(share)]
    if not known:
        return
    bar = {"color": look["color"], "linewidth": look["linewidth"]}
    axes.plot([min(known), max(known)], [height] * 2, **bar)
    middle = _median(shares)
    shown = look if math.isfinite(middle) else look | {"marker": ">"}
    axes.plot(min(middle, rim), height, clip_on=False, **shown)


def _log_x(axes, values):
    """A log axis that holds 1, with plain numbers; returns its right end."""
    low, high = min([0.5, *values]) / 1.1, 1.1 * max([2, *values])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = math.ceil(len(powers) / 6)  # others would touch
    ticks = [2.0**power for power in powers if power % step == 0]
    axes.set_xticks(ticks, [*map(exact, ticks)])
    axes.set_xticks([], minor=True)
    return high


def _table(found):
    shown = []
    for sweep in found:
        best = _best(sweep.reference)
        about = (
            f"{sweep.axis.name} ({_optimizer(sweep)}): {sweep.reference.name}, {best}"
        )
        shown.append([about])
        for rival in sweep.rivals:
            shares = [middle(rival.shares(key)) for key in _KEYS]
            shown.append([rival.name, _best(rival.row), *shares])
    several = [median for median in medians(found) if median["sweeps"] > 1]
    for optimizer, rows in itertools.groupby(several, lambda x: x["optimizer"]):
        shown.append([f"Medians over sweeps, {optimizer}"])
        for row in rows:
            count = f"{row['sweeps']} sweeps, {row['reached']} reach the loss"
            shares = [middle([row[key]]) for key in _KEYS]
            shown.append([row["row"], count, *shares])
    caption = (
        "Steps and seconds to the reference's last loss, divided by the reference's "
        "own, and the test loss at that point, divided by the reference's last test "
        "loss; median over seeds (lowest – highest). A seed that diverges or never "
        "reaches the loss counts as infinite, and has no test loss. The heading of a "
        "sweep names the reference and its best value; the name of a row says what "
        "sets it apart."
    )
    table = page.table("Does it pay?", list(_HEADS), shown)
    return f'{table}<p class="facts">{page.text(caption)}</p>\n'


def _best(row):
    if row.best is None:
        return "all diverged"
    return exact(row.best) + " (at the edge)" * (bool(row.cells) and row.at_edge)


def _optimizer(sweep):
    """The inner optimizer of the reference in the words of its config.

    A run without a config may have any optimizer: the sweep then stands for itself.
    """
    config = sweep.reference.cells[0].run.info.get("config") or {}
    fields = config.get("optimizer")
    if not fields:
        return sweep.axis.name
    used = fields["name"] in USED_BY["optimizer.name"]["optimizer.momentum"]
    momentum = fields.get("momentum") if used else None
    name = fields["name"]
    return f"{name}, momentum {exact(momentum)}" if momentum else name


def _median(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan
