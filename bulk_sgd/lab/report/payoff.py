"""Whether scales pay: the rows of a tuned sweep against the tuned optimizer itself."""

from typing import NamedTuple

from bulk_sgd.lab.report import tuned
from bulk_sgd.lab.report.results import SGD
from bulk_sgd.lab.report.study import Axis, one_arm_each
from bulk_sgd.lab.report.tuned import Row
from bulk_sgd.lab.report.verdicts import Claim, judge, source

_UNITS = "steps", "seconds"


class Rival(NamedTuple):
    """A row of a tuned sweep, and its `tuned.costs` against the reference `plain`."""

    row: Row
    plain: Row
    costs: list[dict]


def rivals(axis: Axis) -> list[Rival]:
    """The rows of a tuned sweep that have a best value, without the reference."""
    rows = tuned.rows(axis)
    plain = tuned.reference(axis, rows)
    if plain is None:
        return []
    alone = one_arm_each(axis.groups)
    # In another setting, the arm of the reference is no rival.
    rival = lambda row: row is not plain and (alone or row.arm != plain.arm)
    found = [row for row in rows if row.cells and rival(row)]
    return [Rival(row, plain, tuned.costs(axis, row, plain)) for row in found]


def claims(axes: list[Axis]) -> list[Claim]:
    """For each tuned sweep: which rows save steps, and which save seconds.

    A row's share is its cost to reach the last loss of the reference, over what the
    reference took: one number per seed, infinite if the row never reaches this loss.
    """
    return [claim for axis in axes if axis.tune for claim in _of_sweep(axis)]


def _of_sweep(axis):
    found = rivals(axis)
    return [_claim(axis, rival, unit) for unit in _UNITS for rival in found]


def _claim(axis, rival, unit):
    row, plain, costs = rival
    by_name = one_arm_each(axis.groups) or axis.summaries[plain.arm].method != SGD
    against = plain.name if by_name else "the plain optimizer"
    edge = ", at the edge of its grid" if row.at_edge or plain.at_edge else ""
    chosen = {cell.index for cell in (*plain.cells, *row.cells)}
    return judge(
        f"Saves {unit} against {against}: {row.name} ({axis.name}{edge})",
        f"{unit} to the last loss of {against} ÷ its own {unit}, both tuned",
        ("<", 1),
        [seed[unit] for seed in costs],
        source(axis, [cell for cell in axis.cells if cell.index in chosen]),
        ratio=True,
    )
