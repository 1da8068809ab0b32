"""Whether scales pay: the rows of tuned sweeps against the tuned optimizer itself."""

import dataclasses
from typing import NamedTuple

from bulk_sgd.lab.report import tuned
from bulk_sgd.lab.report.results import SGD
from bulk_sgd.lab.report.study import Axis, one_arm_each, short_name, show
from bulk_sgd.lab.report.tuned import Row
from bulk_sgd.lab.report.verdicts import Claim, judge, source
from bulk_sgd.lab.sweep.grid import LABEL

_UNITS = "steps", "seconds"


class Rival(NamedTuple):
    """A row, and for each seed its costs over the reference's, as in `tuned.costs`.

    Rows of several sweeps are the same if they have the same arm and `name`, which
    tells the arm and what the setting has other than the reference's setting.
    """

    row: Row
    name: str
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
    found = [
        Rival(row, _name(axis, row, plain, alone), tuned.costs(axis, row, plain))
        for row in rows
        if rival(row)
    ]
    return Sweep(axis, plain, found)


def _name(axis, row, plain, alone):
    ours, theirs = row.setting, plain.setting
    label, arm = ours.get(LABEL), axis.summaries[row.arm].label
    words = [label or "base"] if label != theirs.get(LABEL) else []
    # A label stands for the values that its cells share, here as in `Axis.groups`.
    labelled = [cell for cell in axis.cells if cell.settings.get(LABEL) == label]
    for field in dataclasses.replace(axis, cells=labelled).varied:
        if ours.get(field) != theirs.get(field) and not (alone and field == "arms"):
            words.append(f"{short_name(field)} {show(ours.get(field))}")
    setting = ", ".join(words)
    if alone and setting:
        return setting
    return f"{setting}: {arm}" if setting else arm


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
