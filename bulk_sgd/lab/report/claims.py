"""The claims of the paper as criteria, and what the runs of a study say about them.

Zakarin and Singh, *Accelerating Neural Network Training Along Sharp and Flat
Directions*, arXiv 2505.11972. Every number is computed from the runs. Where they do not
hold what a claim needs, it is not measured. It is undecided where the mean over seeds
is within two of its standard errors of the threshold, where a seed gave no number, and
of a single seed. Ratios of rates and of sharpness are averaged on a log scale.
"""

import dataclasses
import functools
import math

import numpy as np

from bulk_sgd.lab.report.results import last_finite
from bulk_sgd.lab.report.study import (
    BULK_SGD,
    DOM_SGD,
    SGD,
    SYMBOLS,
    TARGET,
    Axis,
    Spread,
    has_energies,
)

HOLDS, FAILS = "holds", "does not hold"
UNDECIDED, UNKNOWN = "undecided", "not measured"
AMPLIFIED = "scales(0.5,2)"
# What the cells of an axis vary, where its title tells something else.
_SUBJECTS = {"curvature": "activation and loss", "rank": "rank k"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the claims table.

    Attributes:
      text: the claim.
      criterion: when it holds, as a formula with its threshold.
      measured: what the criterion compares, over seeds.
      seeds: how many there were, of which some may have given no number.
      verdict: `HOLDS`, `FAILS`, `UNDECIDED` or `UNKNOWN`.
      source: the cells it came from.
    """

    text: str
    criterion: str
    measured: Spread
    seeds: int
    verdict: str
    source: str


def claims(axes: list[Axis]) -> list[Claim]:
    """The claims table of a study, in the order of the paper's argument."""
    by_name = {axis.name: axis for axis in axes}
    # Of a single sweep with one setting, that one.
    seeds = by_name.get("seeds") or (axes[0] if len(axes) == 1 else None)
    if seeds and len(seeds.groups) > 1:
        seeds = None
    paths = by_name.get("interpolation")
    rows = [
        _of_arm(
            seeds,
            "Gradients align with the dominant subspace",
            "mean χ² of the full gradient along SGD",
            SGD,
            "gradient_energy",
            (">", 0.5),
        ),
        _of_arm(
            seeds,
            "Dom-SGD stalls",
            "progress of Dom-SGD (SGD: 1)",
            DOM_SGD,
            "progress",
            ("<", 0.1),
        ),
        _of_arm(
            seeds,
            "Bulk-SGD matches SGD",
            "progress of Bulk-SGD (SGD: 1)",
            BULK_SGD,
            "progress",
            (">", 0.9),
        ),
        *(
            _of_arm(
                seeds,
                f"Bulk updates accelerate convergence: {label}",
                f"speed-up to {TARGET:.0%} of SGD's decrease",
                arm,
                "speed_up",
                (">", 1.05),
            )
            for arm, label in (
                (BULK_SGD, "Bulk-SGD, (0, 1)"),
                (AMPLIFIED, "amplified bulk, (½, 2)"),
            )
        ),
        _sharper(seeds),
        *(
            _of_arm(
                seeds,
                f"They may cost stability, by learning rate: {label}",
                "largest stable η over that of SGD",
                arm,
                "stable_ratio",
                ("<", 0.9),  # the bisection resolves a factor of 1.11
                ratio=True,
            )
            for arm, label in ((BULK_SGD, "(0, 1)"), (AMPLIFIED, "(½, 2)"))
        ),
        *_governors(axes),
        _along_path(
            paths,
            "Interpolation trades: on the bulk path (α, 1), progress falls with α",
            "rank correlation of α and progress",
            "progress",
        ),
        _along_path(
            paths,
            "Interpolation trades: on the bulk path (α, 1), sharpness falls with α",
            "rank correlation of α and last ηλ₁",
            "sharpness_ratio",
        ),
        _along_path(
            paths,
            "Interpolation trades: on the bulk path (α, 1), stability rises with α",
            "rank correlation of α and largest stable η",
            "stable_rate",
            (">", 0.5),
        ),
        *_shares(axes),
    ]
    return rows


def _claim(text, quantity, comparison, values, source, ratio=False):
    """The row of a claim, from one value per seed; of a ratio the logs are compared."""
    sign, threshold = comparison
    shown = f"{threshold:g}".replace("-", "−")
    criterion = f"{quantity} {sign} {shown}"
    values = list(values)
    measured = Spread.of_ratios(values) if ratio else Spread.of(values)
    row = functools.partial(Claim, text, criterion, measured, len(values))
    if not measured.count:
        return row(UNKNOWN, source)
    compared = Spread.of(map(_log, values)) if ratio else measured
    limit = math.log(threshold) if ratio else threshold
    margin = compared.mean - limit if sign == ">" else limit - compared.mean
    error = compared.deviation / math.sqrt(compared.count)  # NaN of a single seed
    if measured.count < len(values) or not abs(margin) > 2 * error:
        return row(UNDECIDED, source)
    return row(HOLDS if margin > 0 else FAILS, source)


def _log(ratio):
    return math.log(ratio) if ratio > 0 else math.nan


def _source(axis, cells):
    if not axis or not cells:
        return "–"
    indices = [cell.index for cell in cells]
    if len(indices) > 2 and indices == [*range(indices[0], indices[-1] + 1)]:
        return f"{axis.name}: cells {indices[0]}–{indices[-1]}"
    word = "cell" if len(indices) == 1 else "cells"
    return f"{axis.name}: {word} {', '.join(map(str, indices))}"


def _of_arm(axis, text, quantity, arm, key, comparison, ratio=False):
    cells = [c for c in _base(axis) if arm in c.arms]
    values = [cell.outcome(arm)[key] for cell in cells]
    return _claim(text, quantity, comparison, values, _source(axis, cells), ratio)


def _base(axis):
    """The cells of an axis of one setting: all seeds."""
    return axis.cells if axis else []


def _sharper(axis):
    both = [c for c in _base(axis) if {SGD, BULK_SGD} <= {*c.arms}]
    values = [
        c.outcome(BULK_SGD)["sharpness_ratio"] / c.outcome(SGD)["sharpness_ratio"]
        for c in both
    ]
    return _claim(
        "They may cost stability: Bulk-SGD ends in sharper places",
        "last λ₁ of Bulk-SGD over that of SGD",
        (">", 1.05),
        values,
        _source(axis, both),
        ratio=True,
    )


def _governors(axes):
    """For each axis, how far its settings move the stable rate of Bulk-SGD.

    For each seed the ratio of stable rates in one setting over that in another, which
    are those where it is largest and smallest on average over the other seeds: chosen
    by the seed's own numbers, they would make an effect of noise.
    """
    rows = []
    for axis in axes:
        cells = [c for c in axis.cells if BULK_SGD in c.arms and _searches(c)]
        if len(axis.groups) < 2 or not cells:
            continue
        logs = {}
        for label, group in axis.groups.items():
            for cell in group:
                seed = cell.settings.get("seed", 0)
                known = BULK_SGD in cell.arms
                ratio = cell.outcome(BULK_SGD)["stable_ratio"] if known else math.nan
                logs.setdefault(seed, {})[label] = _log(ratio)
        factors = [_factor(seed, logs) for seed in logs]
        name = _SUBJECTS.get(axis.name, f"{axis.title[0].lower()}{axis.title[1:]}")
        rows.append(
            _claim(
                f"Governs the stability of Bulk-SGD against SGD: {name}",
                "largest over smallest ratio of stable rates along the axis",
                (">", 1.5),
                factors,
                _source(axis, cells),
                ratio=True,
            )
        )
    return rows


def _searches(cell):
    """Whether stable rates were searched for."""
    config = cell.run.info.get("config") or {}
    return (config.get("stability") or {}).get("rounds", 1) > 0


def _factor(seed, logs) -> float:
    """A seed's ratio between the settings that are extreme for the other seeds."""
    others = [found for other, found in logs.items() if other != seed] or [logs[seed]]
    average = {
        label: np.mean([found.get(label, math.nan) for found in others])
        for label in logs[seed]
    }
    average = {label: x for label, x in average.items() if math.isfinite(x)}
    if len(average) < 2:
        return math.nan
    high, low = (f(average, key=average.get) for f in (max, min))
    return math.exp(logs[seed][high] - logs[seed][low])


def _along_path(axis, text, quantity, key, comparison=("<", -0.5)):
    cells, values = _base(axis), []
    for cell in cells:
        alphas, found = [], []
        for arm in cell.arms:
            a, b = cell.run.summary(arm).scales
            if b == 1 and 0 <= a <= 1:
                alphas.append(a)
                found.append(cell.outcome(arm)[key])
        known = len(alphas) > 2 and np.all(np.isfinite(found))
        values.append(rank_correlation(alphas, found) if known else math.nan)
    return _claim(text, quantity, comparison, values, _source(axis, cells))


def rank_correlation(x, y) -> float:
    """Spearman's rank correlation; equal values have the mean of their ranks.

    >>> rank_correlation([0, 1, 2], [5.0, 5.0, 3.0]).__round__(3)
    -0.866
    """
    ranks = []
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2)[inverse])
    if min(np.ptp(rank) for rank in ranks) == 0:
        return 0.0  # nothing follows what does not change
    return float(np.corrcoef(*ranks)[0, 1])


def _shares(axes):
    """Where H, G and F lie, in each network of the axes that measured energies.

    That is the axis `curvature`, whose subject they are, where there is one.
    """
    measured = [axis for axis in axes if has_energies(axis)]
    chosen = [axis for axis in measured if axis.name == "curvature"] or measured
    groups = [
        (axis, label, [cell for cell in cells if SGD in cell.arms])
        for axis in chosen
        for label, cells in axis.groups.items()
    ] or [(None, "", [])]
    rows = []
    for operator, symbol in SYMBOLS.items():
        for axis, label, cells in groups:
            where = f"{symbol} ({label})" if len(groups) > 1 else symbol
            key = f"{operator}/frobenius_share"
            values = [last_finite(cell.run.series(SGD, key)) for cell in cells]
            text, sign = (
                f"Curvature energy is concentrated in few directions: {where}",
                ">",
            )
            if symbol == "F":
                text = f"The functional Hessian lies mostly in the bulk: {where}"
                sign = "<"
            quantity = f"last Frobenius share of {symbol} along SGD"
            source = _source(axis, cells)
            rows.append(_claim(text, quantity, (sign, 0.5), values, source))
    return rows
