"""Whether scales pay: the rows of tuned sweeps against the tuned optimizer itself."""

import math
from typing import NamedTuple

from bulk_sgd.lab.report import tuned
from bulk_sgd.lab.report.results import SGD
from bulk_sgd.lab.report.study import Axis, one_arm_each
from bulk_sgd.lab.report.tuned import Row
from bulk_sgd.lab.report.verdicts import Claim, judge, source

_UNITS = "steps", "seconds"


class Rival(NamedTuple):
    """A row, and for each seed its costs over the reference's, as in `tuned.costs`.

    The costs of a row that diverged at every value are infinite.
    """

    row: Row
    costs: list[dict]

    def shares(self, key: str) -> list[float]:
        """One entry of the costs, for each seed."""
        return [cost[key] for cost in self.costs]


class Sweep(NamedTuple):
    """A tuned sweep: its reference, and the rows that are compared with it."""

    axis: Axis
    reference: Row
    rivals: list[Rival]


def sweeps(axes: list[Axis]) -> list[Sweep]:
    """The tuned sweeps among the axes that have a reference and a row beside it."""
    found = [_sweep(axis) for axis in axes if axis.tune]
    return [sweep for sweep in found if sweep and sweep.rivals]


def _sweep(axis):
    rows = tuned.rows(axis)
    plain = tuned.reference(axis, rows)
    if plain is None:
        return None
    alone = one_arm_each(axis.groups)
    # In another setting, the arm of the reference is no rival.
    rival = lambda row: row is not plain and (alone or row.arm != plain.arm)
    found = [Rival(row, _costs(axis, row, plain)) for row in rows if rival(row)]
    return Sweep(axis, plain, found)


def _costs(axis, row, plain):
    if row.cells:
        return tuned.costs(axis, row, plain)
    never = dict.fromkeys(tuned.UNITS, math.inf) | {"test_share": math.nan}
    return [never] * max(map(len, row.losses.values()))


def claims(found: list[Sweep]) -> list[Claim]:
    """For each tuned sweep: which rows save steps, and which save seconds.

    A row's share is its cost to reach the last loss of the reference, over what the
    reference took: one number per seed, infinite if the row never reaches this loss.
    """
    return [
        _claim(sweep, rival, unit)
        for sweep in found
        for unit in _UNITS
        for rival in sweep.rivals
    ]


def _claim(sweep, rival, unit):
    axis, plain, _ = sweep
    row = rival.row
    by_name = one_arm_each(axis.groups) or axis.summaries[plain.arm].method != SGD
    against = plain.name if by_name else "the plain optimizer"
    edge = ", at the edge of its grid" if row.at_edge or plain.at_edge else ""
    chosen = {cell.index for cell in (*plain.cells, *row.cells)}
    return judge(
        f"Saves {unit} against {against}: {row.name} ({axis.name}{edge})",
        f"{unit} to {against}'s last loss ÷ {against}'s {unit}",
        ("<", 1),
        rival.shares(unit),
        source(axis, [cell for cell in axis.cells if cell.index in chosen]),
        ratio=True,
    )
