"""The file `tables.json` of a report: what the page shows, for programs to read."""

import json
import pathlib

from bulk_sgd.lab.files import metrics
from bulk_sgd.lab.report import payoff_section, tuned, tuned_section
from bulk_sgd.lab.report.payoff import Sweep
from bulk_sgd.lab.report.study import Axis
from bulk_sgd.lab.report.verdicts import Claim


def write(
    path: pathlib.Path, axes: list[Axis], claims: list[Claim], sweeps: list[Sweep]
) -> None:
    """Writes the claims, all outcomes, the tuned rows and the medians over sweeps."""
    numbers = {"claims": [_claim(claim) for claim in claims]} if claims else {}
    numbers["axes"] = {axis.name: outcomes(axis) for axis in axes}
    numbers["tuned"] = {
        axis.name: tuned_section.numbers(axis, tuned.rows(axis))
        for axis in axes
        if axis.tune
    }
    if sweeps:
        numbers["payoff"] = metrics.plain(payoff_section.medians(sweeps))
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
    return metrics.plain(plain)
