"""The claims of the paper as criteria, and what the runs of a study say about them.

Zakarin and Singh, *Accelerating Neural Network Training Along Sharp and Flat
Directions*, arXiv 2505.11972. Every number is computed from the runs; where they do not
hold what a claim needs, it is not measured.
"""

import dataclasses
import math

import numpy as np

from bulk_sgd.report.results import last_finite
from bulk_sgd.report.study import BULK_SGD, DOM_SGD, SGD, Axis, Spread

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "not measured"
AMPLIFIED = "scales(0.5,2)"
_OPERATORS = (
    ("H", "hessian"),
    ("G", "gauss_newton"),
    ("F", "functional_hessian"),
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the claims table.

    Attributes:
      text: the claim.
      criterion: when it holds, as a formula with its threshold.
      measured: what the criterion compares, over seeds.
      verdict: `HOLDS`, `FAILS` or `UNKNOWN`.
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
    energy = by_name.get("curvature")
    rows = [
        _of_arm(
            seeds,
            "Gradients align with the dominant subspace",
            "mean χ² of the full gradient along SGD ≥ 0.5",
            SGD,
            "gradient_energy",
            lambda x: x >= 0.5,
        ),
        _of_arm(
            seeds,
            "Dom-SGD stalls",
            "progress of Dom-SGD ≤ 0.1 of that of SGD",
            DOM_SGD,
            "progress",
            lambda x: x <= 0.1,
        ),
        _of_arm(
            seeds,
            "Bulk-SGD matches SGD",
            "progress of Bulk-SGD ≥ 0.9 of that of SGD",
            BULK_SGD,
            "progress",
            lambda x: x >= 0.9,
        ),
        *(
            _of_arm(
                seeds,
                f"Bulk updates accelerate convergence: {label}",
                "speed-up to SGD's last loss ≥ 1.05",
                arm,
                "speed_up",
                lambda x: x >= 1.05,
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
                "largest stable η over that of SGD ≤ 0.95",
                arm,
                "stable_ratio",
                lambda x: x <= 0.95,
            )
            for arm, label in ((BULK_SGD, "(0, 1)"), (AMPLIFIED, "(½, 2)"))
        ),
        *_governors(axes),
        _along_path(
            paths,
            "Interpolation trades: on the bulk path (α, 1), speed falls with α",
            "rank correlation of α and progress ≤ −0.5",
            "progress",
        ),
        _along_path(
            paths,
            "… and so does sharpness",
            "rank correlation of α and last ηλ₁ ≤ −0.5",
            "sharpness_ratio",
        ),
        *_shares(energy),
    ]
    return rows


def _claim(text, criterion, values, test, source):
    measured = Spread.of(values)
    if not measured.count:
        return Claim(text, criterion, measured, UNKNOWN, source)
    verdict = HOLDS if test(measured.mean) else FAILS
    return Claim(text, criterion, measured, verdict, source)


def _source(axis, cells):
    if not axis or not cells:
        return "–"
    indices = [cell.index for cell in cells]
    if len(indices) > 2 and indices == [*range(indices[0], indices[-1] + 1)]:
        return f"{axis.name}: cells {indices[0]}–{indices[-1]}"
    return f"{axis.name}: cells {', '.join(map(str, indices))}"


def _of_arm(axis, text, criterion, arm, key, test):
    cells = [c for c in _base(axis) if arm in c.arms]
    values = [cell.outcome(arm)[key] for cell in cells]
    return _claim(text, criterion, values, test, _source(axis, cells))


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
        "last λ₁ of Bulk-SGD over that of SGD ≥ 1.05",
        values,
        lambda x: x >= 1.05,
        _source(axis, both),
    )


def _governors(axes):
    """For each axis, how far its settings move the stable rate of Bulk-SGD."""
    rows = []
    for axis in axes:
        if len(axis.groups) < 2:
            continue
        cells = [c for c in axis.cells if BULK_SGD in c.arms]
        seeds = sorted({c.settings.get("seed", 0) for c in cells})
        factors = []
        for seed in seeds:
            ratios = [
                c.outcome(BULK_SGD)["stable_ratio"]
                for c in cells
                if c.settings.get("seed", 0) == seed
            ]
            ratios = [ratio for ratio in ratios if math.isfinite(ratio)]
            if len(ratios) > 1:
                factors.append(max(ratios) / min(ratios))
        if factors:
            rows.append(
                _claim(
                    "What governs the stability of Bulk-SGD against SGD: "
                    f"{axis.title[0].lower()}{axis.title[1:]}",
                    "largest over smallest ratio of stable rates along the axis ≥ 1.5",
                    factors,
                    lambda x: x >= 1.5,
                    _source(axis, cells),
                )
            )
    return rows


def _along_path(axis, text, criterion, key):
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
    return _claim(text, criterion, values, lambda x: x <= -0.5, _source(axis, cells))


def rank_correlation(x, y) -> float:
    """Spearman's rank correlation of two sequences without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def _shares(axis):
    """Where H, G and F lie, in each network of an axis that measured energies."""
    groups = axis.groups if axis else {"base": []}
    rows = []
    for symbol, operator in _OPERATORS:
        for label, cells in groups.items():
            where = f"{symbol} ({label})" if len(groups) > 1 else symbol
            known = [cell for cell in cells if SGD in cell.arms]
            key = f"{operator}/frobenius_share"
            values = [last_finite(cell.run.series(SGD, key)) for cell in known]
            if symbol == "F":
                text = f"The functional Hessian lies mostly in the bulk: {where}"
                limit, test = "< 0.5", lambda x: x < 0.5
            else:
                text = f"Curvature energy is concentrated in few directions: {where}"
                limit, test = "≥ 0.5", lambda x: x >= 0.5
            criterion = f"last Frobenius share of {symbol} along SGD {limit}"
            rows.append(_claim(text, criterion, values, test, _source(axis, known)))
    return rows
