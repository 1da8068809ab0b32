"""The file `tables.json` of a report: what the page shows, for programs to read.

Numbers that are not known, or not comparable, are null, and so is the loss of a run
that diverged. An infinite cost is the string "never".
"""

import json
import math
import pathlib

from bulk_sgd.lab.files import metrics
from bulk_sgd.lab.report import payoff_section, tuned
from bulk_sgd.lab.report.payoff import Sweep
from bulk_sgd.lab.report.study import Axis
from bulk_sgd.lab.report.verdicts import Claim


def write(
    path: pathlib.Path, axes: list[Axis], claims: list[Claim], sweeps: list[Sweep]
) -> None:
    """Writes the claims, all outcomes, the tuned rows and the medians over sweeps."""
    numbers = {"claims": [_claim(claim) for claim in claims]} if claims else {}
    numbers["axes"] = {axis.name: outcomes(axis) for axis in axes}
    numbers["tuned"] = {axis.name: _rows(axis) for axis in axes if axis.tune}
    if sweeps:
        numbers["payoff"] = list(map(_plain, payoff_section.medians(sweeps)))
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def outcomes(axis: Axis) -> list[dict]:
    """The settings, status and outcomes of each cell, in the order of the cells."""
    return [
        {
            "cell": cell.index,
            "settings": cell.settings,
            "status": cell.status,
            "arms": {arm: metrics.plain(cell.outcome(arm)) for arm in cell.arms},
        }
        for cell in axis.cells
    ]


def _rows(axis):
    """The rows of a tuned sweep and their costs for each seed."""
    rows = tuned.rows(axis)
    plain = tuned.reference(axis, rows)
    return [
        {
            "row": row.name,
            "best": row.best,
            "at_edge": row.at_edge,
            "losses": {f"{x:g}": metrics.plain(y) for x, y in row.losses.items()},
            "costs": list(map(_plain, tuned.costs(axis, row, plain) if plain else [])),
        }
        for row in rows
    ]


def _plain(numbers):
    never = [key for key, x in numbers.items() if x == math.inf and key != "end"]
    return metrics.plain(numbers) | dict.fromkeys(never, "never")


def _claim(claim):
    measured = claim.measured
    plain = {
        "claim": claim.text,
        "criterion": claim.criterion,
        "mean": measured.mean,
        "deviation": measured.deviation,
        "seeds": measured.count,
        "of": claim.seeds,
        "verdict": claim.verdict,
        "cells": claim.source,
    }
    return _plain(plain)
