"""Whether scales pay: the rows of a tuned sweep against the tuned optimizer itself."""

import math

from bulk_sgd.lab.report import tuned
from bulk_sgd.lab.report.study import Axis
from bulk_sgd.lab.report.verdicts import Claim, judge, source

_UNITS = "steps", "seconds"


def claims(axes: list[Axis]) -> list[Claim]:
    """For each tuned sweep: which rows save steps, and which save seconds.

    A row's speed-up is the reference's cost to its last loss over the row's cost to
    that loss, one number per seed. It is 0 for a seed that never reaches the loss.
    """
    return [claim for axis in axes if axis.tune for claim in _of_sweep(axis)]


def _of_sweep(axis):
    rows = tuned.rows(axis)
    plain = tuned.reference(axis, rows)
    others = [row for row in rows if row.cells and row is not plain]
    found = []
    for unit in _UNITS:
        for row in others:
            costs = [cost[unit] for cost in tuned.costs(axis, row, plain)]
            found.append(
                judge(
                    f"Saves {unit} against {plain.name}, both tuned: {row.name} "
                    f"({axis.name})",
                    f"speed-up to {plain.name}'s last loss, in {unit}",
                    (">", 1),
                    [1 / cost if cost else math.nan for cost in costs],
                    source(axis, row.cells),
                )
            )
    return found
