"""The claims of the paper as criteria, and what the runs of a study say about them.

Zakarin and Singh, *Accelerating Neural Network Training Along Sharp and Flat
Directions*, arXiv 2505.11972. Every number is computed from the runs; where they do not
hold what a claim needs, it is not measured, and where the mean over seeds is within two
of its standard errors of the threshold, it is undecided.
"""

import dataclasses
import math

import numpy as np

from bulk_sgd.report.results import last_finite
from bulk_sgd.report.study import (
    BULK_SGD,
    DOM_SGD,
    SGD,
    TARGET,
    Axis,
    Spread,
    has_energies,
)

HOLDS, FAILS = "holds", "does not hold"
UNDECIDED, UNKNOWN = "undecided", "not measured"
AMPLIFIED = "scales(0.5,2)"
_OPERATORS = (
    ("H", "hessian"),
    ("G", "gauss_newton"),
    ("F", "functional_hessian"),
)
# What the cells of an axis vary, where its title tells something else.
_SUBJECTS = {"curvature": "activation and loss", "rank": "rank k"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the claims table.

    Attributes:
      text: the claim.
      criterion: when it holds, as a formula with its threshold.
      measured: what the criterion compares, over seeds.
      verdict: `HOLDS`, `FAILS`, `UNDECIDED` or `UNKNOWN`.
      source: the cells it came from.
    """

    text: str
    criterion: str
    measured: Spread
    verdict: str
    source: str


def claims(axes: list[Axis]) -> list[Claim]:
    """The claims table of a study, in the order of the paper's argument."""
    by_name = {axis.name: axis for axis in axes}
    seeds = by_name.get("seeds") or (axes[0] if len(axes) == 1 else None)
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
            "progress of Dom-SGD, that of SGD being 1",
            DOM_SGD,
            "progress",
            ("<", 0.1),
        ),
        _of_arm(
            seeds,
            "Bulk-SGD matches SGD",
            "progress of Bulk-SGD, that of SGD being 1",
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
                ("<", 0.95),
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
            "… and so does sharpness",
            "rank correlation of α and last ηλ₁",
            "sharpness_ratio",
        ),
        *_shares(axes),
    ]
    return rows


def _claim(text, quantity, comparison, values, source):
    sign, threshold = comparison
    shown = f"{threshold:g}".replace("-", "−")
    criterion, measured = f"{quantity} {sign} {shown}", Spread.of(values)
    if not measured.count:
        return Claim(text, criterion, measured, UNKNOWN, source)
    margin = measured.mean - threshold if sign == ">" else threshold - measured.mean
    # One seed has no error that is known.
    error = measured.deviation / math.sqrt(measured.count) if measured.count > 1 else 0
    verdict = HOLDS if margin > 0 else FAILS
    if abs(margin) <= 2 * error:
        verdict = UNDECIDED
    return Claim(text, criterion, measured, verdict, source)


def _source(axis, cells):
    if not axis or not cells:
        return "–"
    indices = [cell.index for cell in cells]
    if len(indices) > 2 and indices == [*range(indices[0], indices[-1] + 1)]:
        return f"{axis.name}: cells {indices[0]}–{indices[-1]}"
    word = "cell" if len(indices) == 1 else "cells"
    return f"{axis.name}: {word} {', '.join(map(str, indices))}"


def _of_arm(axis, text, quantity, arm, key, comparison):
    cells = [c for c in _base(axis) if arm in c.arms]
    values = [cell.outcome(arm)[key] for cell in cells]
    return _claim(text, quantity, comparison, values, _source(axis, cells))


def _base(axis):
    """The cells of the first setting of an axis: all seeds of the base config."""
    return next(iter(axis.groups.values())) if axis else []


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
    )


def _governors(axes):
    """For each axis, how far its settings move the stable rate of Bulk-SGD.

    Over seeds, the ratio of stable rates in the setting where it is largest on average
    to that in the setting where it is smallest: the same two settings for every seed,
    so that noise does not count as an effect.
    """
    rows = []
    for axis in axes:
        cells = [c for c in axis.cells if BULK_SGD in c.arms]
        if len(axis.groups) < 2 or not cells:
            continue
        ratios = {
            label: {
                c.settings.get("seed", 0): c.outcome(BULK_SGD)["stable_ratio"]
                for c in group
                if c in cells and math.isfinite(c.outcome(BULK_SGD)["stable_ratio"])
            }
            for label, group in axis.groups.items()
        }
        average = {k: np.mean(np.log([*v.values()])) for k, v in ratios.items() if v}
        factors, ends = [], ""
        if len(average) > 1:
            low, high = (f(average, key=average.get) for f in (min, max))
            ends = f" ({high} against {low})"
            factors = [
                ratios[high][seed] / ratios[low][seed]
                for seed in ratios[high].keys() & ratios[low].keys()
            ]
        name = _SUBJECTS.get(axis.name, f"{axis.title[0].lower()}{axis.title[1:]}")
        rows.append(
            _claim(
                f"What governs the stability of Bulk-SGD against SGD: {name}",
                f"largest over smallest ratio of stable rates along the axis{ends}",
                (">", 1.5),
                factors,
                _source(axis, cells),
            )
        )
    return rows


def _along_path(axis, text, quantity, key):
    cells, values = _base(axis), []
    for cell in cells:
        alphas, found = [], []
        for arm in cell.arms:
            a, b = cell.run.summary(arm).scales
            if b == 1 and 0 <= a <= 1:
                alphas.append(a)
                found.append(cell.outcome(arm)[key])
        if len(alphas) > 2 and np.all(np.isfinite(found)):
            values.append(rank_correlation(alphas, found))
    return _claim(text, quantity, ("<", -0.5), values, _source(axis, cells))


def rank_correlation(x, y) -> float:
    """Spearman's rank correlation of two sequences without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
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
    for symbol, operator in _OPERATORS:
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
