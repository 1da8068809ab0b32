"""The claims of the paper as criteria, and what the runs of a study say about them.

Zakarin and Singh, *Accelerating Neural Network Training Along Sharp and Flat
Directions*, arXiv 2505.11972. Every number is computed from the runs; a claim whose
numbers they lack is not measured. `verdicts.judge` decides the others.
"""

import math

import numpy as np

from bulk_sgd.lab.report.energies import SYMBOLS, has_energies
from bulk_sgd.lab.report.outcomes import TARGET
from bulk_sgd.lab.report.results import BULK_SGD, DOM_SGD, SGD, last_finite
from bulk_sgd.lab.report.study import Axis
from bulk_sgd.lab.report.verdicts import Claim, judge, log, rank_correlation, source

AMPLIFIED = "scales(0.5,2)"
_SPEED = f"speed-up to {TARGET:.0%} of SGD's decrease"
# Claims about one arm: text, quantity, arm, key of `Cell.outcome`, and when it holds.
_FIRST = (
    ("Gradients align with the dominant subspace",
     "mean χ² of the full gradient along SGD", SGD, "gradient_energy", (">", 0.5)),
    ("Dom-SGD stalls",
     "progress of Dom-SGD (SGD: 1)", DOM_SGD, "progress", ("<", 0.1)),
    ("Bulk-SGD matches SGD",
     "progress of Bulk-SGD (SGD: 1)", BULK_SGD, "progress", (">", 0.9)),
    ("Bulk updates accelerate convergence: Bulk-SGD, (0, 1)",
     _SPEED, BULK_SGD, "speed_up", (">", 1.05)),
    ("Bulk updates accelerate convergence: amplified bulk, (½, 2)",
     _SPEED, AMPLIFIED, "speed_up", (">", 1.05)),
)  # fmt: skip
_STABLE = tuple(
    (f"They may cost stability, by learning rate: {scales}",
     "largest stable η ÷ SGD's", arm, "stable_ratio",
     ("<", 0.9))  # the bisection resolves a factor of 1.11
    for arm, scales in ((BULK_SGD, "(0, 1)"), (AMPLIFIED, "(½, 2)"))
)  # fmt: skip
# How numbers move with α on the bulk path: text, quantity, key, and when it holds.
_PATHS = (
    ("progress falls", "progress", "progress", ("<", -0.5)),
    ("sharpness falls", "last ηλ₁", "sharpness_ratio", ("<", -0.5)),
    ("stability rises", "largest stable η", "stable_rate", (">", 0.5)),
)
# What the cells of an axis vary, where its title says something else.
_SUBJECTS = {"curvature": "activation and loss", "rank": "rank k"}


def claims(axes: list[Axis]) -> list[Claim]:
    """The claims table of a study, in the order of the paper's argument."""
    by_name = {axis.name: axis for axis in axes}
    # A study of one sweep takes that one, if it has a single setting.
    seeds = by_name.get("seeds") or (axes[0] if len(axes) == 1 else None)
    if seeds and len(seeds.groups) > 1:
        seeds = None
    return [
        *(_of_arm(seeds, *claim) for claim in _FIRST),
        _sharper(seeds),
        *(_of_arm(seeds, *claim, ratio=True) for claim in _STABLE),
        *_governors(axes),
        *(_along_path(by_name.get("interpolation"), *claim) for claim in _PATHS),
        *_shares(axes),
    ]


def _of_arm(axis, text, quantity, arm, key, comparison, ratio=False):
    cells = [cell for cell in _cells(axis) if arm in cell.arms]
    values = [cell.outcome(arm)[key] for cell in cells]
    return judge(text, quantity, comparison, values, source(axis, cells), ratio)


def _cells(axis):
    return axis.cells if axis else []


def _sharper(axis):
    cells = [cell for cell in _cells(axis) if {SGD, BULK_SGD} <= {*cell.arms}]
    last = lambda cell, arm: cell.outcome(arm)["sharpness_ratio"]
    ratios = [last(cell, BULK_SGD) / last(cell, SGD) for cell in cells]
    text = "They may cost stability: Bulk-SGD ends in sharper places"
    quantity = "last λ₁ of Bulk-SGD ÷ SGD's"
    return judge(text, quantity, (">", 1.05), ratios, source(axis, cells), ratio=True)


def _governors(axes):
    """For each axis, how far its settings move the stable rate of Bulk-SGD.

    It names the two settings where the rate is largest and smallest on average. What
    counts is each seed's ratio between those that are extreme on average over the
    other seeds: settings chosen by its own numbers would turn noise into an effect.
    """
    rows = []
    for axis in axes:
        cells = [c for c in axis.cells if BULK_SGD in c.arms and _searched(c)]
        if len(axis.groups) < 2 or not cells:
            continue
        logs = {}
        for label, group in axis.groups.items():
            for cell in group:
                seed = cell.settings.get("seed", 0)
                known = BULK_SGD in cell.arms
                ratio = cell.outcome(BULK_SGD)["stable_ratio"] if known else math.nan
                logs.setdefault(seed, {})[label] = log(ratio)
        name = _SUBJECTS.get(axis.name, f"{axis.title[0].lower()}{axis.title[1:]}")
        text = f"Governs the stability of Bulk-SGD against SGD: {name}"
        others = {s: [x for t, x in logs.items() if t != s] or [logs[s]] for s in logs}
        found = [_factor(logs[seed], _extremes(others[seed])) for seed in logs]
        extremes = _extremes(list(logs.values()))
        if extremes:
            text += f" (largest at {extremes[0]}, smallest at {extremes[1]})"
        quantity = "ratio of stable rates at the extremes of the other seeds"
        arguments = text, quantity, (">", 1.5), found, source(axis, cells)
        rows.append(judge(*arguments, ratio=True))
    return rows


def _searched(cell):
    """Whether the run searched for stable rates."""
    config = cell.run.info.get("config") or {}
    return (config.get("stability") or {}).get("rounds", 1) > 0


def _extremes(logs) -> tuple[str, str] | None:
    """The settings with the largest and the smallest mean over seeds.

    `logs` holds a dict per seed, from setting to logarithm. Returns None unless at
    least two settings have a mean.
    """
    mean = lambda label: np.mean([found.get(label, math.nan) for found in logs])
    average = {
        label: mean(label) for label in dict.fromkeys(x for f in logs for x in f)
    }
    average = {label: x for label, x in average.items() if math.isfinite(x)}
    if len(average) < 2:
        return None
    return max(average, key=average.get), min(average, key=average.get)


def _factor(logs, extremes) -> float:
    """A seed's ratio between two settings."""
    high, low = extremes or (None, None)
    return math.exp(logs.get(high, math.nan) - logs.get(low, math.nan))


def _along_path(axis, trend, quantity, key, comparison):
    cells, values = _cells(axis), []
    for cell in cells:
        scales = {arm: cell.run.summary(arm).scales for arm in cell.arms}
        alphas = {arm: a for arm, (a, b) in scales.items() if b == 1 and 0 <= a <= 1}
        found = [cell.outcome(arm)[key] for arm in alphas]
        known = len(alphas) > 2 and np.all(np.isfinite(found))
        values.append(
            rank_correlation([*alphas.values()], found) if known else math.nan
        )
    text = f"Interpolation trades: on the bulk path (α, 1), {trend} with α"
    quantity = f"rank correlation of α and {quantity}"
    return judge(text, quantity, comparison, values, source(axis, cells))


def _shares(axes):
    """Where H, G and F lie in each network, by the axis `curvature` if there is one."""
    measured = [axis for axis in axes if has_energies(axis)]
    chosen = [axis for axis in measured if axis.name == "curvature"] or measured
    groups = [
        (axis, label, [cell for cell in cells if SGD in cell.arms])
        for axis in chosen
        for label, cells in axis.groups.items()
    ] or [(None, "", [])]
    rows = []
    for operator, symbol in SYMBOLS.items():
        text, sign = "Curvature energy is concentrated in few directions", ">"
        if symbol == "F":
            text, sign = "The functional Hessian lies mostly in the bulk", "<"
        quantity = f"last Frobenius share of {symbol} along SGD"
        for axis, label, cells in groups:
            where = f"{symbol} ({label})" if len(groups) > 1 else symbol
            key = f"{operator}/frobenius_share"
            values = [last_finite(cell.run.series(SGD, key)) for cell in cells]
            found = source(axis, cells)
            rows.append(judge(f"{text}: {where}", quantity, (sign, 0.5), values, found))
    return rows
