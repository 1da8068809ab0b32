"""The tables of a study's report, as HTML."""

import math

import numpy as np

from bulk_sgd.lab.report import page
from bulk_sgd.lab.report.formatting import number
from bulk_sgd.lab.report.study import Axis, Spread
from bulk_sgd.lab.report.style import arm_styles

# Heading and key of `Cell.outcome`.
_COLUMNS = (
    ("last loss", "train_loss"),
    ("loss / loss at fork", "loss_ratio"),
    ("progress", "progress"),
    ("speed-up in steps", "speed_up"),
    ("in matvecs", "matvec_speed_up"),
    ("test accuracy", "test_accuracy"),
    ("χ of updates", "alignment"),
    ("χ² of gradients", "gradient_energy"),
    ("descent ratio", "descent_ratio"),
    ("ηλ₁", "sharpness_ratio"),
    ("η batch sharpness", "batch_sharpness"),
    ("largest stable η", "stable_rate"),
)


def of_axis(axis: Axis) -> str:
    """Every number of an axis, a row per method under each setting."""
    if not axis.summaries:
        return page.note("No cell has begun.")
    columns = *_COLUMNS, *((key.removeprefix("own/"), key) for key in axis.own)
    shown = {key: head for head, key in columns if axis.measured(key)}
    styles = arm_styles(axis.summaries.values())
    rows, colors = [], []
    for label in axis.groups:
        if len(axis.groups) > 1:
            rows.append([label])
            colors.append(None)
        for arm, summary in axis.summaries.items():
            diverged = axis.over_seeds(label, arm, "diverged")
            if not diverged:
                continue
            known = f"{np.nansum(diverged):.0f} of {np.isfinite(diverged).sum()}"
            numbers = [_cell(key, axis.over_seeds(label, arm, key)) for key in shown]
            rows.append([summary.label, known, *numbers])
            colors.append(styles[arm].color)
    heads = ["method", "diverged", *shown.values()]
    table = page.table(f"{axis.title}: all numbers", heads, rows, colors)
    own = "Columns of your own functions are the last finite values."
    return table + f'<p class="facts">{own}</p>\n' * bool(axis.own)


def show(spread: Spread, seeds: int | None = None) -> str:
    """Mean ± deviation, and over how many of the seeds; a dash where there is none."""
    if spread.mean == math.inf:
        return "never"
    if not spread.count:
        return "–"
    of = f" of {seeds}" if seeds and seeds > spread.count else ""
    return f"{plus_minus(spread)} (n = {spread.count}{of})"


def plus_minus(spread: Spread) -> str:
    """Mean ± deviation to the same decimal, or the number of a single seed."""
    mean = spread.mean
    if spread.count < 2:
        return number(mean)
    rounding = 1e-12 * abs(mean)  # the deviation of equal numbers is not exactly 0
    deviation = spread.deviation if spread.deviation > rounding else 0.0
    larger = number(max(abs(mean), deviation))
    if "e" in larger:
        return f"{number(mean)} ± {number(deviation)}"
    decimals = len(larger.partition(".")[2])
    return f"{mean:,.{decimals}f} ± {deviation:,.{decimals}f}".replace("-", "−")


def _cell(key, values):
    """Mean ± deviation of a column over the seeds, and how many gave a number."""
    unit = ""
    if key == "test_accuracy":
        values, unit = [100 * x for x in values], "\N{NO-BREAK SPACE}%"
    spread = Spread.of(values)
    if not spread.count:
        return "–"
    reached = Spread.of(x for x in values if x > 0)
    if "speed_up" in key and reached.count < spread.count > 1:  # 0 is no speed
        mean = f": {number(reached.mean)}" if reached.count else ""
        return f"{reached.count} of {spread.count} seeds{mean}"
    known = f" (n = {spread.count})" if spread.count < len(values) else ""
    # So that a narrow column breaks it into two lines, not three.
    return plus_minus(spread).replace("± ", "±\N{NO-BREAK SPACE}") + unit + known
