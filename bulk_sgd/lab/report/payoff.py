"""Whether scales pay: the rows of a tuned sweep against the tuned optimizer itself."""

from bulk_sgd.lab.report import tuned
from bulk_sgd.lab.report.results import SGD
from bulk_sgd.lab.report.study import Axis, one_arm_each
from bulk_sgd.lab.report.verdicts import Claim, judge, source

_UNITS = "steps", "seconds"


def claims(axes: list[Axis]) -> list[Claim]:
    """For each tuned sweep: which rows save steps, and which save seconds.

    A row's share is its cost to reach the last loss of the reference, over what the
    reference took: one number per seed, infinite if the row never reaches this loss.
    """
    return [claim for axis in axes if axis.tune for claim in _of_sweep(axis)]


def _of_sweep(axis):
    rows = tuned.rows(axis)
    plain = tuned.reference(axis, rows)
    alone = one_arm_each(axis.groups)
    # In another setting, the arm of the reference is no rival.
    others = [row for row in rows if row is not plain and row.cells]
    others = [row for row in others if alone or row.arm != plain.arm]
    costs = [tuned.costs(axis, row, plain) for row in others]
    found, against = [], "the plain optimizer"
    if others and (alone or axis.summaries[plain.arm].method != SGD):
        against = plain.name
    for unit in _UNITS:
        for row, cost in zip(others, costs):
            cells = {cell.index: cell for cell in [*plain.cells, *row.cells]}
            edge = ", at the edge of its grid" if row.at_edge or plain.at_edge else ""
            claim = judge(
                f"Saves {unit} against {against}: {row.name} ({axis.name}{edge})",
                f"{unit} to the last loss of {against} ÷ its own {unit}, both tuned",
                ("<", 1),
                [seed[unit] for seed in cost],
                source(axis, [cells[index] for index in sorted(cells)]),
                ratio=True,
            )
            found.append(claim)
    return found
