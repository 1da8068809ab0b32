"""One claim: what was measured over seeds, and whether it holds."""

import dataclasses
import functools
import math

import numpy as np

from bulk_sgd.lab.report.formatting import exact
from bulk_sgd.lab.report.study import Axis, Cell, Spread

HOLDS, FAILS = "holds", "does not hold"
UNDECIDED, UNKNOWN = "undecided", "not measured"
_NEVER = Spread(math.inf, math.nan, 0)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the claims table; some of its `seeds` may have given no number."""

    text: str
    criterion: str
    measured: Spread
    seeds: int
    verdict: str
    source: str


def judge(
    text: str,
    quantity: str,
    comparison: tuple[str, float],
    values,
    source,
    ratio=False,
) -> Claim:
    """The row of a claim that holds where `values`, one per seed, compare so.

    It is undecided where the mean over seeds is within two of its standard errors of
    the threshold, where a seed gave no number (NaN), and where there is a single seed.
    With `ratio` means are taken on a log scale. If all values are infinite, so is the
    mean.
    """
    sign, threshold = comparison
    values = list(values)
    never = values and all(value == math.inf for value in values)
    measured = Spread.of_ratios(values) if ratio else Spread.of(values)
    measured = _NEVER if never else measured
    limit = exact(threshold)
    criterion = f"{quantity} {sign} {limit}"
    row = functools.partial(Claim, text, criterion, measured, len(values))
    if never:
        settled = FAILS if sign == "<" else HOLDS
        return row(settled if len(values) > 1 else UNDECIDED, source)
    if not measured.count:
        return row(UNKNOWN, source)
    compared = Spread.of(map(log, values) if ratio else values)
    limit = math.log(threshold) if ratio else threshold
    margin = compared.mean - limit if sign == ">" else limit - compared.mean
    error = compared.deviation / math.sqrt(compared.count)  # NaN of a single seed
    if measured.count < len(values) or not abs(margin) > 2 * error:
        return row(UNDECIDED, source)
    return row(HOLDS if margin > 0 else FAILS, source)


def log(ratio: float) -> float:
    """The logarithm; NaN where there is none."""
    return math.log(ratio) if ratio > 0 else math.nan


def source(axis: Axis | None, cells: list[Cell]) -> str:
    """Names the cells, such as `rank: cells 0–3`."""
    if not axis or not cells:
        return "–"
    indices = [cell.index for cell in cells]
    if len(indices) > 2 and indices == [*range(indices[0], indices[-1] + 1)]:
        return f"{axis.name}: cells {indices[0]}–{indices[-1]}"
    word = "cell" if len(indices) == 1 else "cells"
    return f"{axis.name}: {word} {', '.join(map(str, indices))}"


def rank_correlation(x, y) -> float:
    """Spearman's rank correlation; equal values have the mean of their ranks."""
    ranks = []
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2)[inverse])
    if min(np.ptp(rank) for rank in ranks) == 0:
        return 0.0  # nothing follows what does not change
    return float(np.corrcoef(*ranks)[0, 1])
